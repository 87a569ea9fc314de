"""What a few seeds allow to say: intervals at 95 %, equivalence, exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and the ends of its interval; all are NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Interval:
        """The interval cut to what is possible at all, such as 0 to 1 for a share."""
        return Interval(self.value, min(max(self.low, low), high), min(max(self.high, low), high))


class Equivalence(NamedTuple):
    """Two one-sided tests: whether a mean difference lies within +-margin, at a risk of 5 % of saying so wrongly."""

    difference: Interval
    margin: float
    p: float  # the larger of the two tests' p values
    equivalent: bool


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's distribution (Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd + 1, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return 0.5 + math.copysign(0.5 * inside, t)


def student_quantile(p: float, freedom: int) -> float:
    """The t below which a share p of Student's distribution lies, by bisection."""
    if p < 0.5:
        return -student_quantile(1 - p, freedom)
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def mean(values: Sequence[float]) -> Interval:
    """The mean of independent values, one a seed, with Student's interval; without bounds for a single value."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    middle = math.fsum(values) / count
    if count == 1:
        return Interval(middle, -math.inf, math.inf)
    half = student_quantile(0.5 + CONFIDENCE / 2, count - 1) * _error(values)
    return Interval(middle, middle - half, middle + half)


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean of first - second over pairs: the same seed, and so the same data, for both."""
    return mean([a - b for a, b in zip(first, second, strict=True)])


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987) of paired differences against -margin and +margin."""
    found, count = mean(differences), len(differences)
    if count < 2:
        return Equivalence(found, margin, math.nan, False)
    error = _error(differences)
    if error == 0:
        p = 0.0 if abs(found.value) < margin else 1.0
    else:
        p = 1 - student_cdf((margin - abs(found.value)) / error, count - 1)
    return Equivalence(found, margin, p, p < 1 - CONFIDENCE)


def slope(xs: Sequence[float], ys: Sequence[float]) -> Interval:
    """The slope of a line through points by least squares, with Student's interval."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if len(x) < 3 or not (np.isfinite(y).all() and np.ptp(x) > 0):
        return Interval(math.nan, math.nan, math.nan)
    off = x - x.mean()
    spread = float(off @ off)
    middle = float(off @ y) / spread
    rest = y - y.mean() - middle * off
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / spread)
    half = student_quantile(0.5 + CONFIDENCE / 2, len(x) - 2) * error
    return Interval(middle, middle - half, middle + half)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> Interval:
    """p of y = a x^p, from the logarithms of both."""
    if any(v <= 0 for v in (*xs, *ys)):
        return Interval(math.nan, math.nan, math.nan)
    return slope([math.log(x) for x in xs], [math.log(y) for y in ys])


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    count = len(values)
    middle = math.fsum(values) / count
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (count - 1) / count)
