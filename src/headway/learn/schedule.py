"""Learning rate schedules: a factor on the optimiser's learning rates, a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from headway.config import family, register
from headway.errors import ConfigError

_RISE = 10  # a planned warm-up takes at most 1 / 10 of the run


@family
@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` raises the factor linearly from 0: a fraction of the run if below 1, otherwise a number of steps."""

    warmup: float = 0.02  # linear rise from 0: a fraction of the run if below 1, otherwise steps

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < math.inf:
            raise ConfigError(f"schedule.warmup is {self.warmup}; use 0 or more")

    def factor(self, step: int, steps: int) -> float:
        """The factor for update `step` (from 0) of `steps`."""
        rise = in_steps(self.warmup, steps)
        if step < rise:
            return (step + 1) / rise
        return self.after(step, rise, steps)

    def after(self, step: int, rise: int, steps: int) -> float:
        """The factor after the `warmup_steps`."""
        raise NotImplementedError

    def planned(self, steps: int) -> Self:
        """The schedule of a run whose length may be revised: the warm-up in steps, at most a tenth of the run."""
        return replace(self, warmup=float(min(in_steps(self.warmup, steps), max(1, steps // _RISE))))

    def moved(self, done: int, steps: int, wanted: int) -> Self | None:
        """The schedule for `new_steps` instead of `steps` after `done` steps, which have the same learning rates under
        both. None if there is no such schedule.
        """
        same = all(self.factor(step, steps) == self.factor(step, wanted) for step in range(done))
        return self if same else None

    def again(self, done: int, steps: int, wanted: int) -> Self | None:
        """`rescheduled`, for a run of `steps` that returns to step `done`, before its decay."""
        return self.moved(done, steps, wanted)

    def flat(self, steps: int) -> int | None:
        """The step at which the final decay begins, before which the run can be extended; None for a schedule that
        decays throughout or depends on the length otherwise.
        """
        return None


def in_steps(piece: float, steps: int) -> int:
    """A duration in steps: `length` is a fraction of the run if below 1, otherwise a number of steps."""
    return round(piece * steps) if piece < 1 else round(piece)


@register("constant")
@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """A constant learning rate."""

    def after(self, step: int, rise: int, steps: int) -> float:
        return 1.0

    def flat(self, steps: int) -> int | None:
        return steps


@register("cosine")
@dataclass(frozen=True)
class CosineConfig(ScheduleConfig):
    """Half a cosine from 1 to `floor` (Loshchilov and Hutter 2017)."""

    floor: float = 0.1  # final learning rate, as a fraction of the peak

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"schedule.floor is {self.floor}; use a fraction of the peak, from 0 to 1")

    def after(self, step: int, rise: int, steps: int) -> float:
        done = min(1.0, (step + 1 - rise) / max(1, steps - rise))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


@register("wsd")
@dataclass(frozen=True)
class WSDConfig(ScheduleConfig):
    """Warm-up, a stable learning rate, and a linear decay to 0 over the last fraction `decay` of the run (Hu et al.
    2024); a decay above 1 is a number of steps.

    `bends` are revisions of the plan during the decay, as (step, previously planned end): from that step on, the
    learning rate falls linearly from its value there to 0 at the new end.
    """

    decay: float = 0.6  # last fraction of the run, over which the learning rate falls to 0; above 1 steps
    bends: tuple[tuple[int, int], ...] = ()  # revisions of the plan during the decay, written by runs

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay < math.inf:
            raise ConfigError(f"schedule.decay is {self.decay}; use a fraction above 0, or a number of steps")

    def after(self, step: int, rise: int, steps: int) -> float:
        ends = (*(end for _, end in self.bends), steps)
        top, end, span = 1.0, ends[0], self._decline(ends[0])
        for (bend, _), following in zip(self.bends, ends[1:]):
            if step < bend:
                break
            top, end, span = min(1.0, top * (end - bend) / span), following, max(1, following - bend)
        return min(1.0, top * (end - step) / span)

    def planned(self, steps: int) -> WSDConfig:
        return replace(super().planned(steps), decay=float(max(2, round(self._decline(steps)))))

    def moved(self, done: int, steps: int, wanted: int) -> WSDConfig | None:
        if self.bends or done >= steps - self._decline(steps):
            return replace(self, bends=(*self.bends, (done, steps)))
        return self._stretched(done, steps, wanted)

    def again(self, done: int, steps: int, wanted: int) -> WSDConfig | None:
        return self._stretched(done, self.bends[0][1] if self.bends else steps, wanted)

    def flat(self, steps: int) -> int | None:
        end = self.bends[0][1] if self.bends else steps
        return max(in_steps(self.warmup, end), int(end - self._decline(end)))

    def _stretched(self, done: int, steps: int, wanted: int) -> WSDConfig:
        """The same fractions for a run of another length, of which `done` steps of the stable part are complete."""
        decline = min(round(self._decline(steps) * wanted / steps), wanted - done)
        rise = float(in_steps(self.warmup, steps))  # unchanged, not a fraction of the new length
        return replace(self, warmup=rise, decay=float(max(2, decline)), bends=())

    def _decline(self, steps: int) -> float:
        return max(1.0, self.decay * steps) if self.decay <= 1 else self.decay


@register("halving")
@dataclass(frozen=True)
class HalvingConfig(ScheduleConfig):
    """A constant learning rate for `hold`, then halved, and halved again after each further `every`. Both are fractions
    of the run if below 1, otherwise steps.

    The defaults are those of Sutskever et al. 2014, section 3.4: 5 of 7.5 epochs at one rate, then halved every half
    epoch.
    """

    warmup: float = 0.0
    hold: float = 2 / 3  # duration of the first learning rate
    every: float = 1 / 15  # duration of each further learning rate

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, right in (("hold", self.hold, self.hold >= 0), ("every", self.every, self.every > 0)):
            if not (right and value < math.inf):
                raise ConfigError(f"schedule.{name} is {value}; use a fraction below 1, or a number of steps")

    def after(self, step: int, rise: int, steps: int) -> float:
        late = step - in_steps(self.hold, steps)
        return 1.0 if late < 0 else 0.5 ** (1 + late // max(1, in_steps(self.every, steps)))


@register("inverse_sqrt")
@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """Vaswani et al. 2017, section 5.3: sqrt(warmup / step) after the warm-up; `optim.lr` is the peak (`noam_peak`)."""

    warmup: float = 4000

    def after(self, step: int, rise: int, steps: int) -> float:
        return math.sqrt(max(1, rise) / (step + 1))

    def flat(self, steps: int) -> int | None:
        return steps if self.warmup >= 1 else None


def noam_peak(width: int, warmup: int, scale: float = 1.0) -> float:
    """The peak of the 2017 formula: scale * width^-0.5 * min(step^-0.5, step * warmup^-1.5) at step = warmup."""

    return scale / math.sqrt(width * warmup)
