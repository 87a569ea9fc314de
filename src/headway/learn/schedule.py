"""Learning rate schedules: a factor on the optimiser's learning rates that is a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from headway.config_kinds import family, register
from headway.errors import ConfigError

_MAX_WARMUP_FRACTION = 10  # a planned warm-up takes at most 1 / 10 of the run


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
        warmup_steps = in_steps(self.warmup, steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return self.after(step, warmup_steps, steps)

    def after(self, step: int, warmup_steps: int, steps: int) -> float:
        """The factor after the `warmup_steps`."""
        raise NotImplementedError

    def planned(self, steps: int) -> Self:
        """The schedule for a run whose length may be revised: the warm-up in steps, at most a tenth of the run."""
        return replace(self, warmup=float(min(in_steps(self.warmup, steps), max(1, steps // _MAX_WARMUP_FRACTION))))

    def rescheduled(self, done: int, steps: int, new_steps: int) -> Self | None:
        """The schedule for `new_steps` instead of `steps`, with the same learning rates for the `done` steps. None if
        there is no such schedule.
        """
        is_equal = all(self.factor(step, steps) == self.factor(step, new_steps) for step in range(done))
        return self if is_equal else None

    def extended(self, done: int, steps: int, new_steps: int) -> Self | None:
        """`rescheduled`, for a run of `steps` that goes back to step `done`, before its decay."""
        return self.rescheduled(done, steps, new_steps)

    def decay_start(self, steps: int) -> int | None:
        """The step at which the final decay starts; until then the run can be extended. None for a schedule that decays
        throughout or depends on the length in some other way.
        """
        return None


def in_steps(length: float, steps: int) -> int:
    """A duration in steps: `length` is a fraction of the run if below 1, otherwise a number of steps."""
    return round(length * steps) if length < 1 else round(length)


@register("constant")
@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """A constant learning rate."""

    def after(self, step: int, warmup_steps: int, steps: int) -> float:
        return 1.0

    def decay_start(self, steps: int) -> int | None:
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

    def after(self, step: int, warmup_steps: int, steps: int) -> float:
        progress = min(1.0, (step + 1 - warmup_steps) / max(1, steps - warmup_steps))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


@register("wsd")
@dataclass(frozen=True)
class WSDConfig(ScheduleConfig):
    """Warm-up, a stable learning rate, and a linear decay to 0 over the last fraction `decay` of the run (Hu et al.
    2024); a decay above 1 is a number of steps.

    `bends` are revisions to the plan during the decay, as (step, previously planned end). From that step, the learning
    rate falls linearly from its current value to 0 at the new end.
    """

    decay: float = 0.6  # final fraction of the run over which the learning rate falls to 0; above 1: number of steps
    bends: tuple[tuple[int, int], ...] = ()  # revisions to the plan during the decay, written by runs

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay < math.inf:
            raise ConfigError(f"schedule.decay is {self.decay}; use a fraction above 0, or a number of steps")

    def after(self, step: int, warmup_steps: int, steps: int) -> float:
        planned_ends = (*(end for _, end in self.bends), steps)
        start_factor, end, span = 1.0, planned_ends[0], self._decay_steps(planned_ends[0])
        for (bend_step, _), next_end in zip(self.bends, planned_ends[1:]):
            if step < bend_step:
                break
            start_factor, end, span = (
                min(1.0, start_factor * (end - bend_step) / span),
                next_end,
                max(1, next_end - bend_step),
            )
        return min(1.0, start_factor * (end - step) / span)

    def planned(self, steps: int) -> WSDConfig:
        return replace(super().planned(steps), decay=float(max(2, round(self._decay_steps(steps)))))

    def rescheduled(self, done: int, steps: int, new_steps: int) -> WSDConfig | None:
        if self.bends or done >= steps - self._decay_steps(steps):
            return replace(self, bends=(*self.bends, (done, steps)))
        return self._with_length(done, steps, new_steps)

    def extended(self, done: int, steps: int, new_steps: int) -> WSDConfig | None:
        return self._with_length(done, self.bends[0][1] if self.bends else steps, new_steps)

    def decay_start(self, steps: int) -> int | None:
        end = self.bends[0][1] if self.bends else steps
        return max(in_steps(self.warmup, end), int(end - self._decay_steps(end)))

    def _with_length(self, done: int, steps: int, new_steps: int) -> WSDConfig:
        """The same fractions for a run with another length, after `done` steps in the stable part."""
        decay_steps = min(round(self._decay_steps(steps) * new_steps / steps), new_steps - done)
        warmup_steps = float(in_steps(self.warmup, steps))  # stays the same, whatever the new length
        return replace(self, warmup=warmup_steps, decay=float(max(2, decay_steps)), bends=())

    def _decay_steps(self, steps: int) -> float:
        return max(1.0, self.decay * steps) if self.decay <= 1 else self.decay


@register("halving")
@dataclass(frozen=True)
class HalvingConfig(ScheduleConfig):
    """A constant learning rate for `hold`, then halved, and halved again after each further `every`. Both are fractions
    of the run if below 1, otherwise numbers of steps.

    The defaults are from Sutskever et al. 2014, section 3.4: 5 of 7.5 epochs at one rate, then halved every half epoch.
    """

    warmup: float = 0.0
    hold: float = 2 / 3  # how long the first learning rate is held
    every: float = 1 / 15  # interval between further halvings

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, is_valid in (("hold", self.hold, self.hold >= 0), ("every", self.every, self.every > 0)):
            if not (is_valid and value < math.inf):
                raise ConfigError(f"schedule.{name} is {value}; use a fraction below 1, or a number of steps")

    def after(self, step: int, warmup_steps: int, steps: int) -> float:
        steps_after_hold = step - in_steps(self.hold, steps)
        return 1.0 if steps_after_hold < 0 else 0.5 ** (1 + steps_after_hold // max(1, in_steps(self.every, steps)))


@register("inverse_sqrt")
@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """Vaswani et al. 2017, section 5.3: sqrt(warmup / step) after the warm-up; `optim.lr` is the peak (`noam_peak`)."""

    warmup: float = 4000

    def after(self, step: int, warmup_steps: int, steps: int) -> float:
        return math.sqrt(max(1, warmup_steps) / (step + 1))

    def decay_start(self, steps: int) -> int | None:
        return steps if self.warmup >= 1 else None


def noam_peak(width: int, warmup: int, scale: float = 1.0) -> float:
    """The peak in the 2017 formula: scale * width^-0.5 * min(step^-0.5, step * warmup^-1.5) at step = warmup."""

    return scale / math.sqrt(width * warmup)
