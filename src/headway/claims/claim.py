"""What a claim is: a statement, an experiment, a rule fixed beforehand, and a control that must fail; and what a few
seeds allow to say.
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


Values = Mapping[str, Any]  # numbers, and lists of numbers, by name


class Trial(NamedTuple):
    """What one variant gave with one seed."""

    variant: str
    seed: int
    values: Values
    seconds: float


@dataclass(frozen=True)
class Trials:
    """All trials of a claim; a variant's are in the order of the seeds, so that variants pair up."""

    all: Sequence[Trial]

    @property
    def seeds(self) -> int:
        return len({trial.seed for trial in self.all})

    def of(self, variant: str, name: str) -> list[Any]:
        """One value of a variant, a trial each; a number that was none is NaN."""
        found = [trial.values[name] for trial in self.all if trial.variant == variant]
        return [math.nan if value is None else value for value in found]

    def at(self, variant: str, name: str, index: int) -> list[float]:
        """One point of a series, a trial each."""
        return [math.nan if series[index] is None else series[index] for series in self.of(variant, name)]

    def share(self, variant: str, name: str, index: int | None = None) -> Interval:
        """The mean over seeds of a number from 0 to 1."""
        return mean(self.of(variant, name) if index is None else self.at(variant, name, index)).within(0, 1)


@dataclass(frozen=True)
class Number:
    """A result with its interval at 95 %; `of` says over how many seeds or points."""

    name: str
    interval: Interval
    of: str = "seeds"


@dataclass(frozen=True)
class Finding:
    """What the rule says of the trials. `effect` is whether the statement's effect is there, by the numbers; `control`
    whether the control failed as it must. A statement holds where both are so: an experiment whose control does not
    fail shows nothing.
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
    """One statement of the history as an experiment.

    `measured`, `rule` and `control` say in words what `measure` and `judge` do in code; `control` also says why it
    must fail. `settings` and `full` are frozen dataclasses of the experiment's own: its sizes by default and by --full.
    `variants(settings)` names what is compared; `measure(settings, variant, seed)` runs one trial; `judge(settings,
    trials)` applies the rule; `draw(figure, settings, trials)` makes the picture. `minutes` are those of one core.
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
    judge: Callable[[Any, Trials], Finding]
    draw: Callable[[Figure, Any, Trials], None]
    seeds: int = 3
    full: Any = None
    full_minutes: float | None = None
    full_seeds: int | None = None


@dataclass(frozen=True)
class Evidence:
    """A claim, what was run for it, and what came of it."""

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
