"""Claims (a statement, an experiment, a rule fixed beforehand, and a control that must fail), and statistics over a
few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its interval; all are NaN without data."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Interval:
        """The interval clipped to the range of possible values, such as 0 to 1 for a share."""
        return Interval(self.value, min(max(self.low, low), high), min(max(self.high, low), high))


class Equivalence(NamedTuple):
    """Two one-sided tests of whether a mean difference is within +-margin, at a significance level of 5 %."""

    difference: Interval
    margin: float
    p: float  # the larger of the two tests' p values
    equivalent: bool


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for Student's distribution (Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4)."""
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
    """The p-quantile of Student's distribution, by bisection."""
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
    """The mean of independent values, one per seed, with Student's interval; unbounded for a single value."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    middle = math.fsum(values) / count
    if count == 1:
        return Interval(middle, -math.inf, math.inf)
    half = student_quantile(0.5 + CONFIDENCE / 2, count - 1) * _error(values)
    return Interval(middle, middle - half, middle + half)


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean of first - second over pairs with the same seed, and so the same data."""
    return mean([a - b for a, b in zip(first, second, strict=True)])


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987) of paired differences against -margin and +margin."""
    interval, count = mean(differences), len(differences)
    if count < 2:
        return Equivalence(interval, margin, math.nan, False)
    error = _error(differences)
    if error == 0:
        p = 0.0 if abs(interval.value) < margin else 1.0
    else:
        p = 1 - student_cdf((margin - abs(interval.value)) / error, count - 1)
    return Equivalence(interval, margin, p, p < 1 - CONFIDENCE)


def slope(xs: Sequence[float], ys: Sequence[float]) -> Interval:
    """The slope of a line through points by least squares, with Student's interval."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if len(x) < 3 or not (np.isfinite(y).all() and np.ptp(x) > 0):
        return Interval(math.nan, math.nan, math.nan)
    off = x - x.mean()
    spread = float(off @ off)
    middle = float(off @ y) / spread
    residuals = y - y.mean() - middle * off
    error = math.sqrt(float(residuals @ residuals) / (len(x) - 2) / spread)
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


Values = Mapping[str, Any]  # numbers and lists of numbers by name


class Trial(NamedTuple):
    """The values of one variant with one seed."""

    variant: str
    seed: int
    values: Values
    seconds: float


@dataclass(frozen=True)
class Trials:
    """All trials for a claim. A variant's trials are in seed order, so variants can be paired."""

    all: Sequence[Trial]

    @property
    def seeds(self) -> int:
        return len({trial.seed for trial in self.all})

    def collect(self, variant: str, name: str) -> list[Any]:
        """One of a variant's values, per trial; null is NaN."""
        values = [trial.values[name] for trial in self.all if trial.variant == variant]
        return [math.nan if value is None else value for value in values]

    def collect_point(self, variant: str, name: str, index: int) -> list[float]:
        """One point in a series, per trial."""
        return [math.nan if series[index] is None else series[index] for series in self.collect(variant, name)]

    def share(self, variant: str, name: str, index: int | None = None) -> Interval:
        """The mean over seeds of a number from 0 to 1."""
        return mean(self.collect(variant, name) if index is None else self.collect_point(variant, name, index)).within(
            0, 1
        )


@dataclass(frozen=True)
class Number:
    """A result with its 95 % interval; `of` names what the interval is over: seeds, points, ..."""

    name: str
    interval: Interval
    of: str = "seeds"


@dataclass(frozen=True)
class Finding:
    """The rule's outcome. `effect` is whether the numbers show the effect that the statement claims, `control` whether
    the control failed as it must. The statement holds if both are true: an experiment whose control does not fail shows
    nothing.
    """

    numbers: Sequence[Number]
    effect: bool
    control: bool
    remarks: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        return self.effect and self.control

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "does not hold here"

    @property
    def control_verdict(self) -> str:
        return "fails, as it must" if self.control else "does not fail: the experiment shows nothing"


@dataclass(frozen=True)
class Claim:
    """A historical claim as an experiment.

    `measured`, `rule` and `control` describe what `measure` and `apply_rule` do; `control` also explains why it must
    fail. `settings` and `full` are frozen dataclasses with the experiment's sizes, by default and with --full.
    `variants(settings)` lists the variants to compare; `measure(settings, variant, seed)` runs one trial;
    `apply_rule(settings, trials)` applies the rule; `draw(figure, settings, trials)` draws the figure. `minutes` is the
    run time on one core.
    """

    number: int
    name: str
    title: str
    statement: str
    source: str
    measured: str
    rule: str
    control: str
    minutes: float
    settings: Any
    variants: Callable[[Any], Sequence[str]]
    measure: Callable[[Any, str, int], Values]
    apply_rule: Callable[[Any, Trials], Finding]
    draw: Callable[[Figure, Any, Trials], None]
    seeds: int = 3
    full: Any = None
    full_minutes: float | None = None
    full_seeds: int | None = None


@dataclass(frozen=True)
class Evidence:
    """A claim with its trials and its finding."""

    claim: Claim
    settings: Any
    trials: Trials
    finding: Finding
    full: bool
    seed: int
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials.all)
