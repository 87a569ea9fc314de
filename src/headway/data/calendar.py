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
_YEAR, _NEAR = re.compile(r"[12]\d{3}(\.\d+)?"), 0.1  # of a month
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
    written: str

    @property
    def season(self) -> int:
        """Steps per season: a year for months, quarters and weeks, a week for days, a day for hours, and an hour for
        steps under 10 minutes; 1 if there is no season.
        """
        if self.unit == "number":
            return 1
        if self.unit == "month":
            return 12 // self.step if 12 % self.step == 0 else 1
        if self.step in (_DAY, 7 * _DAY):
            return 7 if self.step == _DAY else 52
        whole = _DAY if self.step >= _HOUR // 6 else _HOUR
        return whole // self.step if whole % self.step == 0 else 1

    def text(self, tick: int) -> str:
        """Format a time like the times in the data. UserError if it is after the year 9999."""
        if self.unit == "number":
            return str(tick)
        try:
            found = self._date(tick)
        except (OverflowError, ValueError):
            raise UserError(f"time {tick} (in {self.unit}s) is after the year 9999; request fewer steps") from None
        if _DOTTED.fullmatch(self.written):
            return f"{found[8:10]}.{found[5:7]}.{found[:4]}{found[10:]}"
        return found.replace("-", "/", 2) if _SLASHED.fullmatch(self.written) else found

    def _date(self, tick: int) -> str:
        written = iso(self.written)
        if self.unit == "month":
            year, month = 1970 + tick // 12, tick % 12 + 1
            datetime(year, month, 1)  # raises after the year 9999
            if _QUARTER.fullmatch(written):
                return f"{year}Q{(month + 2) // 3}"
            if _MONTH.fullmatch(written):
                return f"{year:04}-{month:02}"
            day = min(datetime.fromisoformat(written).day, monthrange(year, month)[1])
            return f"{year:04}-{month:02}-{day:02}{written[10:]}"
        zone, time = datetime.fromisoformat(written).tzinfo, _EPOCH + tick * _MICROSECOND
        if len(written) <= 10:
            return time.date().isoformat()
        sep = "T" if "T" in written else " "
        return (time.astimezone(zone) if zone else time.replace(tzinfo=None)).isoformat(sep)


def iso(text: str) -> str:
    """A date like 31.12.1999 or 1999/12/31, with or without a time, in ISO 8601; other strings unchanged."""
    found = _DOTTED.fullmatch(text) or _SLASHED.fullmatch(text)
    if found is None:
        return text
    return f"{found['year']}-{int(found['month']):02}-{int(found['day']):02}{found['time'] or ''}"


def read_time(text: str) -> tuple[Unit, int] | None:
    """A time as integer units since 1970 (or as a plain number): ISO 8601, 31.12.1999, 1999/12/31, 2024-05, 2024Q2
    or 2024; None for other strings.
    """
    if found := _NUMBER.fullmatch(text):
        return "number", int(found[1])
    if len(text) < 9 and ((found := _QUARTER.fullmatch(text)) or (found := _MONTH.fullmatch(text))):
        month = int(found[2]) * 3 - 3 if found.re is _QUARTER else int(found[2]) - 1
        return ("month", (int(found[1]) - 1970) * 12 + month) if 0 <= month < 12 else None
    try:
        time = datetime.fromisoformat(iso(text))
    except ValueError:
        return None
    return "microsecond", ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def months_of_years(texts: Sequence[str]) -> np.ndarray | None:
    """Convert fractional years to months since 1970: 1949.083 is February 1949, 1960.25 is the second quarter of 1960.
    None for other strings.
    """
    if not all(_YEAR.fullmatch(text) for text in texts) or all(_NUMBER.fullmatch(text) for text in texts):
        return None
    exact = 12 * np.array([float(text) for text in texts])
    months = np.round(exact).astype(np.int64)
    return months - 12 * 1970 if np.abs(exact - months).max() < _NEAR else None


def axis(texts: Iterable[str]) -> Shaped[np.ndarray, "N"]:
    """Times formatted by a calendar, as the dates or numbers of a plot's axis."""
    read = [time for text in texts if (time := read_time(text)) is not None]
    units: dict[Unit, str] = {"number": "int64", "month": "datetime64[M]", "microsecond": "datetime64[us]"}
    return np.array([tick for _, tick in read], np.int64).astype(units[read[0][0]])


def by_months(ticks: np.ndarray, texts: Iterable[str]) -> tuple[np.ndarray, str] | None:
    """Dates [N] as months with an example of their format, if all are on the same day of the month or all on its last
    day; otherwise None.
    """
    dates = (ticks // _DAY).astype("datetime64[D]")
    days, after = (_day(some) for some in (dates, dates + 1))
    different = np.unique(ticks)
    months = dates.astype("datetime64[M]").astype(np.int64)
    same = (days == days[0]).all() or (after == 0).all()
    if not same or len({*(ticks % _DAY).tolist()}) > 1 or len(different) < 2 or len(np.unique(months)) < len(different):
        return None
    return months, max(texts, key=lambda text: iso(text)[8:10])


def _day(dates: np.ndarray) -> np.ndarray:
    return (dates - dates.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
