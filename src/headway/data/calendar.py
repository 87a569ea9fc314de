"""Equally spaced times: parsing, formatting, and the season length that the step suggests."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from headway.errors import UserError

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
    days, next_days = (_day(days_of) for days_of in (dates, dates + 1))
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


def _day(dates: np.ndarray) -> np.ndarray:
    return (dates - dates.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
