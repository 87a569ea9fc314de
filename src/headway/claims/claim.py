"""What a claim is: a statement, an experiment, a rule fixed beforehand, and a control that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from headway.claims.statistics import Interval, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
