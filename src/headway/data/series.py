"""Time series from tables with a time column, wide or long: equally spaced times, and numbers in the formats that
people and programs use (1234.5, 66,19, 1.234,5 or 1,234.5).
"""

from __future__ import annotations

import math
import re
from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from headway.data.table_files import TableRow, read_table_rows
from headway.errors import UserError, logger, nearest

Unit = Literal["number", "month", "microsecond"]

_NUMBER, _MONTH = re.compile(r"(-?\d{1,7})(?:\.0*)?"), re.compile(r"(\d{4})-(\d\d)")
_YEAR, _TOLERANCE = re.compile(r"[12]\d{3}(\.\d+)?"), 0.1  # months
_QUARTER = re.compile(r"(\d{4})[- ]?[Qq]([1-4])")
_DOTTED = re.compile(r"(?P<day>\d\d?)\.(?P<month>\d\d?)\.(?P<year>\d{4})(?P<time>\D.*)?")
_SLASHED = re.compile(r"(?P<year>\d{4})/(?P<month>\d\d?)/(?P<day>\d\d?)(?P<time>\D.*)?")
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_SECOND = 1_000_000
_HOUR, _DAY = 3600 * _SECOND, 86_400 * _SECOND


@dataclass(frozen=True)
class Calendar:
    """Steps of `step` time units (months, microseconds, or integers such as years), formatted like `example`."""

    unit: Unit
    step: int
    example: str

    @property
    def season_length(self) -> int:
        """Steps per season: a year for months, quarters and weeks, a week for days, a day for hours, and an hour for
        steps under 10 minutes; 1 if there is no season.
        """
        if self.unit == "number":
            return 1
        if self.unit == "month":
            return 12 // self.step if 12 % self.step == 0 else 1
        if self.step in (_DAY, 7 * _DAY):
            return 7 if self.step == _DAY else 52
        period = _DAY if self.step >= _HOUR // 6 else _HOUR
        return period // self.step if period % self.step == 0 else 1

    @property
    def step_text(self) -> str:
        """The step in the largest unit that divides it, such as "day" or "3 months"."""
        units = {"microsecond": 1, "second": _SECOND, "minute": 60 * _SECOND, "hour": _HOUR, "day": _DAY}
        names = units if self.unit == "microsecond" else {"step" if self.unit == "number" else self.unit: 1}
        name = next(name for name in reversed(names) if self.step % names[name] == 0)
        count = self.step // names[name]
        return name if count == 1 else f"{count:,} {name}s"

    def format(self, tick: int) -> str:
        """Format a time like the times in the data. UserError if it is after the year 9999."""
        if self.unit == "number":
            return str(tick)
        try:
            formatted = self._date(tick)
        except (OverflowError, ValueError):
            raise UserError(f"time {tick} (in {self.unit}s) is after the year 9999; request fewer steps") from None
        if _DOTTED.fullmatch(self.example):
            return f"{formatted[8:10]}.{formatted[5:7]}.{formatted[:4]}{formatted[10:]}"
        return formatted.replace("-", "/", 2) if _SLASHED.fullmatch(self.example) else formatted

    def _date(self, tick: int) -> str:
        template = to_iso(self.example)
        if self.unit == "month":
            year, month = 1970 + tick // 12, tick % 12 + 1
            datetime(year, month, 1)  # raises after the year 9999
            if _QUARTER.fullmatch(template):
                return f"{year}Q{(month + 2) // 3}"
            if _MONTH.fullmatch(template):
                return f"{year:04}-{month:02}"
            day = min(datetime.fromisoformat(template).day, monthrange(year, month)[1])
            return f"{year:04}-{month:02}-{day:02}{template[10:]}"
        zone, time = datetime.fromisoformat(template).tzinfo, _EPOCH + tick * _MICROSECOND
        if len(template) <= 10:
            return time.date().isoformat()
        sep = "T" if "T" in template else " "
        return (time.astimezone(zone) if zone else time.replace(tzinfo=None)).isoformat(sep)


def to_iso(text: str) -> str:
    """A date like 31.12.1999 or 1999/12/31, with or without a time, in ISO 8601; other strings unchanged."""
    match = _DOTTED.fullmatch(text) or _SLASHED.fullmatch(text)
    if match is None:
        return text
    return f"{match['year']}-{int(match['month']):02}-{int(match['day']):02}{match['time'] or ''}"


def parse_time(text: str) -> tuple[Unit, int] | None:
    """A time as integer units since 1970 (or as a plain number): ISO 8601, 31.12.1999, 1999/12/31, 2024-05, 2024Q2
    or 2024; None for other strings.
    """
    if match := _NUMBER.fullmatch(text):
        return "number", int(match[1])
    if len(text) < 9 and ((match := _QUARTER.fullmatch(text)) or (match := _MONTH.fullmatch(text))):
        month = int(match[2]) * 3 - 3 if match.re is _QUARTER else int(match[2]) - 1
        return ("month", (int(match[1]) - 1970) * 12 + month) if 0 <= month < 12 else None
    try:
        time = datetime.fromisoformat(to_iso(text))
    except ValueError:
        return None
    return "microsecond", ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def years_to_months(strings: Sequence[str]) -> np.ndarray | None:
    """Convert fractional years to months since 1970: 1949.083 is February 1949, 1960.25 is the second quarter of 1960.
    None for other strings.
    """
    if not all(_YEAR.fullmatch(text) for text in strings) or all(_NUMBER.fullmatch(text) for text in strings):
        return None
    exact_months = 12 * np.array([float(text) for text in strings])
    months = np.round(exact_months).astype(np.int64)
    return months - 12 * 1970 if np.abs(exact_months - months).max() < _TOLERANCE else None


def plot_axis(strings: Iterable[str]) -> Shaped[np.ndarray, "N"]:
    """Times formatted by a calendar, as dates or numbers for a plot axis."""
    parsed = [time for text in strings if (time := parse_time(text)) is not None]
    units: dict[Unit, str] = {"number": "int64", "month": "datetime64[M]", "microsecond": "datetime64[us]"}
    return np.array([tick for _, tick in parsed], np.int64).astype(units[parsed[0][0]])


def to_months(ticks: np.ndarray, strings: Iterable[str]) -> tuple[np.ndarray, str] | None:
    """Dates [N] as months with an example of their format, if all are on the same day of the month or all on its last
    day; otherwise None.
    """
    dates = (ticks // _DAY).astype("datetime64[D]")
    days, next_days = (
        (days_of - days_of.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
        for days_of in (dates, dates + 1)
    )
    distinct = np.unique(ticks)
    months = dates.astype("datetime64[M]").astype(np.int64)
    same_day = (days == days[0]).all() or (next_days == 0).all()
    if (
        not same_day
        or len({*(ticks % _DAY).tolist()}) > 1
        or len(distinct) < 2
        or len(np.unique(months)) < len(distinct)
    ):
        return None
    return months, max(strings, key=lambda text: to_iso(text)[8:10])


_MISSING_VALUES = ("", "nan", "na", "n/a", "null", "none", "nat", "-")
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?")  # before decimals
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")  # commas between thousands


class NumberColumn(NamedTuple):
    """Numbers, NaN if missing; `invalid` lists the rows with any other content."""

    values: Float[np.ndarray, "N"]
    invalid: list[int]


def parse_number_column(values: Sequence[Any]) -> NumberColumn:
    """Parse a column. A comma is the decimal separator if all numbers of the column allow it and not all commas can be
    thousands separators. The whole column decides; if both readings are possible, these values are invalid.
    """
    numbers = np.full(len(values), np.nan)
    unparsed: list[int] = []
    for row, value in enumerate(values):
        number = _parse_plain(value)
        if number is None:
            unparsed.append(row)
        else:
            numbers[row] = number
    strings = {row: str(values[row]).strip() for row in unparsed if isinstance(values[row], str) and "," in values[row]}
    thousands = all(_THOUSANDS.fullmatch(text) for text in strings.values())
    decimals = sum(_COMMA.fullmatch(text) is not None for text in strings.values())
    if not strings or (thousands and decimals == len(strings)):
        return NumberColumn(numbers, unparsed)
    invalid = [row for row in unparsed if row not in strings]
    if not thousands and decimals:
        strings = {row: str(value).strip() for row, value in enumerate(values) if isinstance(value, str)}
    for row, text in strings.items():
        if thousands:
            numbers[row] = float(text.replace(",", ""))
        elif _COMMA.fullmatch(text):
            numbers[row] = float(text.replace(".", "").replace(",", "."))
        elif text.lower() not in _MISSING_VALUES and row not in invalid:
            invalid.append(row)
    return NumberColumn(numbers, sorted(invalid))


def _parse_plain(value: Any) -> float | None:
    """A number, NaN if missing; None for anything else."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING_VALUES):
        return math.nan
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: integers of 400 digits
        return None
    return None if number is None or math.isinf(number) else number


_LOG = logger(__name__)
_GERMAN = ("datum", "zeit", "zeitpunkt", "monat", "quartal", "woche", "tag", "stunde", "jahr")
_ENGLISH = ("time", "date", "datetime", "timestamp", "ds", "month", "quarter", "week", "day", "hour", "year")
_NAMES = {
    "time": (*_ENGLISH, *_GERMAN),
    "series": ("series", "unique_id", "item_id", "id"),
    "value": ("value", "y", "target", "wert"),
}
_ROW_NUMBER_NAMES = ("", "rownames", "unnamed: 0", "index")  # columns in which programs number rows
_SAMPLE_ROWS = 100  # rows that decide the kind of a column
_MAX_LISTED = 4  # problems of one kind listed in a message


class Series(NamedTuple):
    """A series with equal time steps from `start`; `seen` is false for values that were filled in."""

    name: str
    start: int
    values: Float[np.ndarray, "N"]
    seen: Bool[np.ndarray, "N"]


class SeriesColumns(NamedTuple):
    """The time column and, in long tables, those with series names and values; in wide ones every other column is a
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


def problems_error(problems: Sequence[Problem]) -> UserError:
    """All problems in one error, the first ones of each kind in detail."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.remedy, []).append(problem.fact)
    parts = []
    for remedy, facts in kinds.items():
        more = f", and {len(facts) - _MAX_LISTED:,} more" if len(facts) > _MAX_LISTED else ""
        parts.append(f"{', '.join(facts[:_MAX_LISTED])}{more}; {remedy}")
    return UserError(". ".join(parts))


def read_series(paths: Sequence[Path], requested: SeriesColumns, fill: bool) -> tuple[list[Series], Calendar]:
    """Read all series, in order. `fill` interpolates missing values linearly. UserErrors list all problems of a kind:
    no times, unequal steps, strings among values.
    """
    rows = list(read_table_rows(paths))
    columns = _columns(rows, requested)
    problems: list[Problem] = []
    unit, ticks, example = _time_column(rows, columns.time or "", problems)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if columns.series is None:
        for name in dict.fromkeys(name for row in rows for name in row.values):
            if name != columns.time and name not in columns.ignored and columns.value in (None, name):
                parts[name] = ticks, _number_column(rows, name, problems)
    else:
        values = _number_column(rows, columns.value or "", problems)
        names = [str(row.values.get(columns.series)) for row in rows]
        index_by_name = {name: number for number, name in enumerate(dict.fromkeys(names))}
        series_indices = np.array([index_by_name[name] for name in names])
        order = np.argsort(series_indices, kind="stable")
        for name, row_indices in zip(index_by_name, np.split(order, np.cumsum(np.bincount(series_indices))[:-1])):
            parts[name] = ticks[row_indices], values[row_indices]
    if problems:
        raise problems_error(problems)
    sorted_parts = {name: _sorted(name, *part, Calendar(unit, 1, example), problems) for name, part in parts.items()}
    if problems:
        raise problems_error(problems)
    steps = [int(np.diff(times).min()) for times, _ in sorted_parts.values() if len(times) > 1]
    if not steps:
        raise UserError(f"{rows[0].location}: every series has one value, so the time step is unknown; add more values")
    calendar = Calendar(unit, min(steps), example)
    series = [_regular(name, *part, calendar, fill, problems) for name, part in sorted_parts.items()]
    if problems:
        raise problems_error(problems)
    return series, calendar


def _columns(rows: Sequence[TableRow], requested: SeriesColumns) -> SeriesColumns:
    """The role of each column: from the user's settings, otherwise its name if well known, otherwise its content."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    sample_rows = rows[:_SAMPLE_ROWS]
    for use in ("time", "series", "value"):
        name = getattr(requested, use)
        if name is not None and name not in names:
            raise UserError(f"{rows[0].location} has no column {name!r} (task.{use}); {nearest(name, names)}")
    by_common_name = {use: next((n for n in names if n.lower() in _NAMES[use]), None) for use in _NAMES}
    dates = [
        n for n in names if all((parse_time(str(r.values.get(n)).strip()) or "n")[0][0] == "m" for r in sample_rows)
    ]
    time = requested.time or by_common_name["time"] or (dates[0] if len(dates) == 1 else None)
    if time is None:
        raise UserError(
            f"{rows[0].location}: it is not clear which of {', '.join(names[:8])} is the time column; "
            "name it time, or set task.time=NAME (reset_index turns a pandas index into a column)"
        )
    row_numbers = [name for name in names if name.lower() in _ROW_NUMBER_NAMES and name not in (time, *requested[:3])]
    candidates = [name for name in names if name != time and name not in row_numbers]
    parsed = {name: parse_number_column([row.values.get(name) for row in sample_rows]) for name in candidates}
    text_columns = [n for n in candidates if n not in dates and 2 * len(parsed[n].invalid) > len(sample_rows)]
    series = requested.series or _series_column(rows, time, by_common_name["series"], text_columns, len(candidates))
    if series is None:
        ignored = [
            name for name in (*text_columns, by_common_name["series"]) if name is not None and name != requested.value
        ]
        ignored = ignored if set(candidates) - set(ignored) else []
        for name in ignored:
            _LOG.warning("ignoring column %r; if it holds series names, set task.series=%s", name, name)
        return SeriesColumns(time, None, requested.value, (*row_numbers, *ignored))
    value_columns = [name for name in candidates if name != series and name not in text_columns]
    value = requested.value or by_common_name["value"] or (value_columns[0] if len(value_columns) == 1 else None)
    if value is None:
        raise UserError(
            f"{rows[0].location}: it is not clear which of {', '.join(value_columns[:8]) or 'no columns'} has the "
            "values of the "
            f"series in {series!r}; name it value, or set task.value=NAME"
        )
    return SeriesColumns(time, series, value)


def _series_column(
    rows: Sequence[TableRow], time: str, known: str | None, text_columns: Sequence[str], candidate_count: int
) -> str | None:
    """The column that separates series: with it every time is unique, without it some repeat. A column with a
    well-known name is taken, too, unless it just numbers the rows.
    """
    times = [str(row.values.get(time)) for row in rows]
    if known is not None:
        names = {str(row.values.get(known)) for row in rows}
        return None if len(rows) > 1 and len(names) == len(set(times)) == len(rows) else known
    if len(set(times)) == len(times) or candidate_count < 2:
        return None
    for name in text_columns:
        pairs = {(moment, str(row.values.get(name))) for moment, row in zip(times, rows)}
        if len(pairs) == len(rows):
            return name
    return text_columns[0] if len(text_columns) == 1 else None


def _number_column(rows: Sequence[TableRow], name: str, problems: list[Problem]) -> Float[np.ndarray, "N"]:
    column: NumberColumn = parse_number_column([row.values.get(name) for row in rows])
    for row in column.invalid:
        fact = f"{rows[row].location}: {name!r} is {rows[row].values.get(name)!r}"
        problems.append(Problem(fact, "write a number, or leave the cell empty if the value is missing"))
    return column.values


def _time_column(
    rows: Sequence[TableRow], name: str, problems: list[Problem]
) -> tuple[Unit, Int[np.ndarray, "N"], str]:
    """The unit, each row's time as an integer, and an example of the format."""
    strings = [str(row.values.get(name)).strip() for row in rows]
    years = years_to_months(strings)
    if years is not None:
        return "month", years, "1970-01"
    parsed = [parse_time(text) for text in strings]
    first_row = next((number for number, time in enumerate(parsed) if time is not None), 0)
    unit: Unit = "number"
    unit, _ = parsed[first_row] or (unit, 0)
    for row, time, text in zip(rows, parsed, strings):
        if time is None or time[0] != unit:
            detail = "which is not a time" if time is None else f"unlike the first, {strings[first_row]!r}"
            remedy = "write all times in one format: 2024-05-31, 31.05.2024, 2024-05-31 13:00, 2024-05, 2024Q2 or 2024"
            problems.append(Problem(f"{row.location}: {name!r} is {text!r}, {detail}", remedy))
    if problems:
        return unit, np.zeros(len(rows), np.int64), strings[first_row]
    ticks = np.array([time[1] for time in parsed if time is not None], np.int64)
    months = to_months(ticks, strings) if unit == "microsecond" else None
    return (unit, ticks, strings[first_row]) if months is None else ("month", *months)


def _sorted(
    name: str, ticks: np.ndarray, values: np.ndarray, calendar: Calendar, problems: list[Problem]
) -> tuple[np.ndarray, np.ndarray]:
    """Sort by time, from the first existing value to the last."""
    order = np.argsort(ticks, kind="stable")
    ticks, values = ticks[order], values[order]
    present = np.flatnonzero(~np.isnan(values))
    if len(present) == 0:
        problems.append(Problem(f"the series {name!r} has no values", "remove it"))
        return ticks, values
    repeats = np.flatnonzero(np.diff(ticks) == 0)
    if len(repeats):
        fact = f"the series {name!r} has two values at {calendar.format(int(ticks[repeats[0]]))}"
        remedy = "keep one value per time, or set task.series=NAME to the column with the series names"
        problems.append(Problem(fact, remedy))
    return ticks[present[0] : present[-1] + 1], values[present[0] : present[-1] + 1]


def _regular(
    name: str, ticks: np.ndarray, values: np.ndarray, calendar: Calendar, fill: bool, problems: list[Problem]
) -> Series:
    """A value for each step. Unequal steps, and gaps if they may not be filled, are problems."""
    positions, remainders = np.divmod(ticks - ticks[0], calendar.step)
    if remainders.any():
        earlier, later = (calendar.format(int(ticks[int(np.flatnonzero(remainders)[0]) - lag])) for lag in (1, 0))
        fact = f"{name!r} has unequal time steps: from {earlier} to {later} is not a multiple of the shortest step"
        problems.append(Problem(fact, "use values at equal time steps"))
    observed = ~np.isnan(values)
    missing_count = int(positions[-1]) + 1 - int(observed.sum())
    if not remainders.any() and missing_count and (not fill or missing_count > observed.sum()):
        gap = next(n for n, position in enumerate(positions[observed].tolist()) if position != n)
        is_fillable = missing_count <= observed.sum()
        remedy = "add them, or set task.fill=true" if is_fillable else "add them, because they are too many to fill"
        first = calendar.format(int(ticks[0]) + gap * calendar.step)
        problems.append(Problem(f"the series {name!r} lacks {missing_count:,} values, the first at {first}", remedy))
    all_steps = np.arange(int(positions[-1]) + 1 if not problems else 1)
    return Series(
        name,
        int(ticks[0]),
        np.interp(all_steps, positions[observed], values[observed]),
        np.isin(all_steps, positions[observed]),
    )


class ForecastWindows(NamedTuple):
    """Forecast windows: the series of each, the step at which its forecast starts, and the index of that step in the
    concatenated values. `splits` are the windows of each split; `train_ends` and `validation_ends` are the ends of
    training and validation in each series.
    """

    series: Int[np.ndarray, "N"]
    steps: Int[np.ndarray, "N"]
    values: Int[np.ndarray, "N"]
    splits: dict[str, Int[np.ndarray, "M"]]
    train_ends: Int[np.ndarray, "S"]
    validation_ends: Int[np.ndarray, "S"]


def split_ends(
    lengths: Int[np.ndarray, "S"], horizon: int, shares: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which training and validation end. The last shares (validation, test) of each series are held out,
    at least one horizon each.
    """
    validation, test = (np.maximum(horizon, np.round(share * lengths).astype(np.int64)) for share in shares)
    return lengths - test - validation, lengths - test


def forecast_windows(
    all_series: Sequence[Series], context: int, horizon: int, shares: tuple[float, float]
) -> ForecastWindows:
    """All windows of `context` steps and a horizon with at least one observed value. A window belongs to the split that
    contains its whole horizon; its context may start earlier.
    """
    lengths = np.array([len(entry.values) for entry in all_series])
    train_ends, validation_ends = split_ends(lengths, horizon, shares)
    count = np.maximum(0, lengths - horizon - context + 1)
    series = np.repeat(np.arange(len(all_series)), count)
    steps = np.arange(len(series)) - np.repeat(np.cumsum(count) - count, count) + context
    values = (np.cumsum(lengths) - lengths)[series] + steps
    observed_counts = np.concatenate([[0], *[entry.seen for entry in all_series]]).cumsum()
    usable = observed_counts[values + horizon] > observed_counts[values]
    series, steps, values = series[usable], steps[usable], values[usable]
    edges = {
        "train": (0 * train_ends, train_ends),
        "validation": (train_ends, validation_ends),
        "test": (validation_ends, lengths),
    }
    splits = {
        split: np.flatnonzero((steps >= low[series]) & (steps + horizon <= high[series]))
        for split, (low, high) in edges.items()
    }
    return ForecastWindows(series, steps, values, splits, train_ends, validation_ends)
