"""Time series from tables with a time column, wide or long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from headway.data.calendar import Calendar, Unit, by_months, months_of_years, read_time
from headway.data.decimals import NumberColumn, read_numbers
from headway.data.tables import TableRow, table_rows
from headway.errors import UserError, logger, nearest

_LOG = logger(__name__)
_GERMAN = ("datum", "zeit", "zeitpunkt", "monat", "quartal", "woche", "tag", "stunde", "jahr")
_ENGLISH = ("time", "date", "datetime", "timestamp", "ds", "month", "quarter", "week", "day", "hour", "year")
_NAMES = {
    "time": (*_ENGLISH, *_GERMAN),
    "series": ("series", "unique_id", "item_id", "id"),
    "value": ("value", "y", "target", "wert"),
}
_COUNTS = ("", "rownames", "unnamed: 0", "index")  # columns in which programs number rows
_LOOKED_AT = 100  # rows that decide the kind of a column
_NAMED = 4  # problems of one kind listed in a message


class Series(NamedTuple):
    """A series in equal steps from the time `start`; `seen` is false for values that were filled in."""

    name: str
    start: int
    values: Float[np.ndarray, "N"]
    seen: Bool[np.ndarray, "N"]


class SeriesColumns(NamedTuple):
    """The time column and, in long tables, those of series names and values; in wide ones every other column is a
    series.
    """

    time: str | None
    series: str | None
    value: str | None
    ignored: tuple[str, ...] = ()


class Problem(NamedTuple):
    """What is wrong with the data, and what to do."""

    fact: str
    remedy: str


def refusal(problems: Sequence[Problem]) -> UserError:
    """All problems in one error, the first ones of each kind in detail."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.remedy, []).append(problem.fact)
    parts = []
    for remedy, facts in kinds.items():
        more = f", and {len(facts) - _NAMED:,} more" if len(facts) > _NAMED else ""
        parts.append(f"{', '.join(facts[:_NAMED])}{more}; {remedy}")
    return UserError(". ".join(parts))


def read_series(paths: Sequence[Path], named: SeriesColumns, fill: bool) -> tuple[list[Series], Calendar]:
    """Read all series, in order. `fill` interpolates missing values linearly. UserErrors list all problems of a kind:
    no times, unequal steps, strings among values.
    """
    rows = list(table_rows(paths))
    columns = _columns(rows, named)
    problems: list[Problem] = []
    unit, ticks, written = _times(rows, columns.time or "", problems)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if columns.series is None:
        for name in dict.fromkeys(name for row in rows for name in row.values):
            if name != columns.time and name not in columns.ignored and columns.value in (None, name):
                parts[name] = ticks, _numbers(rows, name, problems)
    else:
        values = _numbers(rows, columns.value or "", problems)
        names = [str(row.values.get(columns.series)) for row in rows]
        of = {name: number for number, name in enumerate(dict.fromkeys(names))}
        places = np.array([of[name] for name in names])
        order = np.argsort(places, kind="stable")
        for name, some in zip(of, np.split(order, np.cumsum(np.bincount(places))[:-1])):
            parts[name] = ticks[some], values[some]
    if problems:
        raise refusal(problems)
    kept = {name: _sorted(name, *part, Calendar(unit, 1, written), problems) for name, part in parts.items()}
    if problems:
        raise refusal(problems)
    gaps = [int(np.diff(times).min()) for times, _ in kept.values() if len(times) > 1]
    if not gaps:
        raise UserError(f"{rows[0].place}: every series has one value, so the time step is unknown; add more values")
    calendar = Calendar(unit, min(gaps), written)
    found = [_regular(name, *part, calendar, fill, problems) for name, part in kept.items()]
    if problems:
        raise refusal(problems)
    return found, calendar


def _columns(rows: Sequence[TableRow], named: SeriesColumns) -> SeriesColumns:
    """The role of each column: by the user's settings, otherwise by well-known names, otherwise by content."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    some = rows[:_LOOKED_AT]
    for use in ("time", "series", "value"):
        name = getattr(named, use)
        if name is not None and name not in names:
            raise UserError(f"{rows[0].place} has no column {name!r} (task.{use}); {nearest(name, names)}")
    known = {use: next((n for n in names if n.lower() in _NAMES[use]), None) for use in _NAMES}
    dates = [n for n in names if all((read_time(str(r.values.get(n)).strip()) or "n")[0][0] == "m" for r in some)]
    time = named.time or known["time"] or (dates[0] if len(dates) == 1 else None)
    if time is None:
        raise UserError(
            f"{rows[0].place}: it is not clear which of {', '.join(names[:8])} is the time column; set task.time=NAME "
            "(reset_index turns a pandas index into a column)"
        )
    counts = [name for name in names if name.lower() in _COUNTS and name not in (time, *named[:3])]
    others = [name for name in names if name != time and name not in counts]
    read = {name: read_numbers([row.values.get(name) for row in some]) for name in others}
    texts = [n for n in others if n not in dates and 2 * len(read[n].wrong) > len(some)]
    series = named.series or _series_column(rows, time, known["series"], texts, len(others))
    if series is None:
        ignored = [name for name in (*texts, known["series"]) if name is not None and name != named.value]
        ignored = ignored if set(others) - set(ignored) else []
        for name in ignored:
            _LOG.warning("ignored the column %r; set task.series=%s if it contains the names of series", name, name)
        return SeriesColumns(time, None, named.value, (*counts, *ignored))
    left = [name for name in others if name != series and name not in texts]
    value = named.value or known["value"] or (left[0] if len(left) == 1 else None)
    if value is None:
        raise UserError(
            f"{rows[0].place}: it is not clear which of {', '.join(left[:8]) or 'no columns'} has the values of the "
            f"series in {series!r}; set task.value=NAME"
        )
    return SeriesColumns(time, series, value)


def _series_column(
    rows: Sequence[TableRow], time: str, known: str | None, texts: Sequence[str], others: int
) -> str | None:
    """The column that separates series: with it every time is unique, without it some repeat. A column with a
    well-known name is taken, too, unless it just numbers the rows.
    """
    times = [str(row.values.get(time)) for row in rows]
    if known is not None:
        numbers = {str(row.values.get(known)) for row in rows}
        return None if len(rows) > 1 and len(numbers) == len(set(times)) == len(rows) else known
    if len(set(times)) == len(times) or others < 2:
        return None
    for name in texts:
        pairs = {(when, str(row.values.get(name))) for when, row in zip(times, rows)}
        if len(pairs) == len(rows):
            return name
    return texts[0] if len(texts) == 1 else None


def _numbers(rows: Sequence[TableRow], name: str, problems: list[Problem]) -> Float[np.ndarray, "N"]:
    found: NumberColumn = read_numbers([row.values.get(name) for row in rows])
    for row in found.wrong:
        fact = f"{rows[row].place}: {name!r} is {rows[row].values.get(name)!r}"
        problems.append(Problem(fact, "write a number, or leave the cell empty if the value is missing"))
    return found.values


def _times(rows: Sequence[TableRow], name: str, problems: list[Problem]) -> tuple[Unit, Int[np.ndarray, "N"], str]:
    """The unit, each row's time as an integer, and an example of the format."""
    texts = [str(row.values.get(name)).strip() for row in rows]
    years = months_of_years(texts)
    if years is not None:
        return "month", years, "1970-01"
    read = [read_time(text) for text in texts]
    first = next((number for number, time in enumerate(read) if time is not None), 0)
    unit: Unit = "number"
    unit, _ = read[first] or (unit, 0)
    for row, time, text in zip(rows, read, texts):
        if time is None or time[0] != unit:
            why = "which is not a time" if time is None else f"unlike the first, {texts[first]!r}"
            remedy = "write all times in one format: 2024-05-31, 31.05.2024, 2024-05-31 13:00, 2024-05, 2024Q2 or 2024"
            problems.append(Problem(f"{row.place}: {name!r} is {text!r}, {why}", remedy))
    if problems:
        return unit, np.zeros(len(rows), np.int64), texts[first]
    ticks = np.array([time[1] for time in read if time is not None], np.int64)
    months = by_months(ticks, texts) if unit == "microsecond" else None
    return (unit, ticks, texts[first]) if months is None else ("month", *months)


def _sorted(
    name: str, ticks: np.ndarray, values: np.ndarray, calendar: Calendar, problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    """Sort by time, from the first existing value to the last."""
    order = np.argsort(ticks, kind="stable")
    ticks, values = ticks[order], values[order]
    there = np.flatnonzero(~np.isnan(values))
    if len(there) == 0:
        problems.append(Problem(f"the series {name!r} has no values", "remove it"))
        return ticks, values
    twice = np.flatnonzero(np.diff(ticks) == 0)
    if len(twice):
        fact = f"the series {name!r} has two values at {calendar.text(int(ticks[twice[0]]))}"
        remedy = "keep one value per time, or set task.series=NAME to the column with the names of series"
        problems.append(Problem(fact, remedy))
    return ticks[there[0] : there[-1] + 1], values[there[0] : there[-1] + 1]


def _regular(
    name: str, ticks: np.ndarray, values: np.ndarray, calendar: Calendar, fill: bool, problems: list[Problem]
) -> Series:
    """A value for each step. Unequal steps, and gaps if they may not be filled, are problems."""
    places, rest = np.divmod(ticks - ticks[0], calendar.step)
    if rest.any():
        one, other = (calendar.text(int(ticks[int(np.flatnonzero(rest)[0]) - back])) for back in (1, 0))
        fact = f"the steps of {name!r} are unequal: from {one} to {other} is not a multiple of the shortest step"
        problems.append(Problem(fact, "use values at equal time steps"))
    seen = ~np.isnan(values)
    missing = int(places[-1]) + 1 - int(seen.sum())
    if not rest.any() and missing and (not fill or missing > seen.sum()):
        gap = next(n for n, place in enumerate(places[seen].tolist()) if place != n)
        few = missing <= seen.sum()
        remedy = "add them, or set task.fill=true" if few else "add them, because they are too many to fill"
        first = calendar.text(int(ticks[0]) + gap * calendar.step)
        problems.append(Problem(f"the series {name!r} lacks {missing:,} values, the first at {first}", remedy))
    every = np.arange(int(places[-1]) + 1 if not problems else 1)
    return Series(name, int(ticks[0]), np.interp(every, places[seen], values[seen]), np.isin(every, places[seen]))


class Places(NamedTuple):
    """Forecast windows: the series of each, the step at which its forecast starts, and the index of that step in the
    concatenated values. `splits` are the windows of each split; `train_ends` and `validation_ends` are the ends of
    training and validation in each series.
    """

    series: Int[np.ndarray, "N"]
    steps: Int[np.ndarray, "N"]
    values: Int[np.ndarray, "N"]
    sides: dict[str, Int[np.ndarray, "M"]]
    ends: Int[np.ndarray, "S"]
    tests: Int[np.ndarray, "S"]


def ends(lengths: Int[np.ndarray, "S"], horizon: int, shares: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which training and validation end. The last shares (validation, test) of each series are held out,
    at least one horizon each.
    """
    validation, test = (np.maximum(horizon, np.round(share * lengths).astype(np.int64)) for share in shares)
    return lengths - test - validation, lengths - test


def places(found: Sequence[Series], context: int, horizon: int, shares: tuple[float, float]) -> Places:
    """All windows of `context` steps and a horizon with at least one observed value. A window belongs to the split that
    contains its whole horizon; its context may start earlier.
    """
    lengths = np.array([len(one.values) for one in found])
    train, last = ends(lengths, horizon, shares)
    count = np.maximum(0, lengths - horizon - context + 1)
    series = np.repeat(np.arange(len(found)), count)
    steps = np.arange(len(series)) - np.repeat(np.cumsum(count) - count, count) + context
    values = (np.cumsum(lengths) - lengths)[series] + steps
    seen = np.concatenate([[0], *[one.seen for one in found]]).cumsum()
    kept = seen[values + horizon] > seen[values]
    series, steps, values = series[kept], steps[kept], values[kept]
    edges = {"train": (0 * train, train), "validation": (train, last), "test": (last, lengths)}
    sides = {
        side: np.flatnonzero((steps >= low[series]) & (steps + horizon <= high[series]))
        for side, (low, high) in edges.items()
    }
    return Places(series, steps, values, sides, train, last)
