"""Learning rates over a run: a factor on the optimiser's rates, a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from headway.config import family, register
from headway.errors import ConfigError

_RISE = 10  # a planned warm-up takes at most one part in so many


@family
@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` raises the factor linearly from 0: below 1 it is a part of the run, from 1 on a number of steps."""

    warmup: float = 0.02  # linear rise from 0: below 1 a part of the run, from 1 on steps

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < math.inf:
            raise ConfigError(f"schedule.warmup is {self.warmup}; give 0 or more")

    def factor(self, step: int, steps: int) -> float:
        """The factor for update `step` (from 0) of `steps`."""
        rise = in_steps(self.warmup, steps)
        if step < rise:
            return (step + 1) / rise
        return self.after(step, rise, steps)

    def after(self, step: int, rise: int, steps: int) -> float:
        """The factor after a warm-up of `rise` steps."""
        raise NotImplementedError

    def planned(self, steps: int) -> Self:
        """The schedule of a run whose number of steps is a plan: the warm-up in steps, a tenth of the run at most."""
        return replace(self, warmup=float(min(in_steps(self.warmup, steps), max(1, steps // _RISE))))

    def moved(self, done: int, steps: int, wanted: int) -> Self | None:
        """The schedule for `wanted` steps in place of `steps`, when `done` of them have been made: those have the same
        rates under both. None where there is no such schedule.
        """
        same = all(self.factor(step, steps) == self.factor(step, wanted) for step in range(done))
        return self if same else None

    def again(self, done: int, steps: int, wanted: int) -> Self | None:
        """`moved`, for a run of `steps` that goes back to `done`, before its rate fell."""
        return self.moved(done, steps, wanted)

    def flat(self, steps: int) -> int | None:
        """The steps after which the rate begins to fall to the end of the run, and from which it could go on as it is;
        None for a schedule that falls all the time or never.
        """
        return None


def in_steps(piece: float, steps: int) -> int:
    """The length of a piece of a run in steps: below 1 it is a part of the run, from 1 on a number of steps."""
    return round(piece * steps) if piece < 1 else round(piece)


@register("constant")
@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """One rate."""

    def after(self, step: int, rise: int, steps: int) -> float:
        return 1.0

    def flat(self, steps: int) -> int | None:
        return steps


@register("cosine")
@dataclass(frozen=True)
class CosineConfig(ScheduleConfig):
    """Half a cosine from 1 to `floor` (Loshchilov and Hutter 2017)."""

    floor: float = 0.1  # what remains of the peak at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"schedule.floor is {self.floor}; give a part of the peak, from 0 to 1")

    def after(self, step: int, rise: int, steps: int) -> float:
        done = min(1.0, (step + 1 - rise) / max(1, steps - rise))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


@register("wsd")
@dataclass(frozen=True)
class WSDConfig(ScheduleConfig):
    """Warm-up, a stable rate, and over the last `decay` part of the run a line to 0 (Hu et al. 2024); a decay above 1
    is a number of steps.

    `bends` are where on the way down the plan of a run was changed, as (step, the end that was planned before): from
    there a line leads from the rate of that moment to the new end.
    """

    decay: float = 0.6  # the last part of the run, over which the rate falls to 0; above 1 steps
    bends: tuple[tuple[int, int], ...] = ()  # written by runs whose plan was changed on the way down

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay < math.inf:
            raise ConfigError(f"schedule.decay is {self.decay}; give a part of the run above 0, or a number of steps")

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
        """The same parts of a run of another length, in whose flat part `done` steps have been made."""
        decline = min(round(self._decline(steps) * wanted / steps), wanted - done)
        rise = float(in_steps(self.warmup, steps))  # as it was, and not a part of the new length
        return replace(self, warmup=rise, decay=float(max(2, decline)), bends=())

    def _decline(self, steps: int) -> float:
        return max(1.0, self.decay * steps) if self.decay <= 1 else self.decay


@register("halving")
@dataclass(frozen=True)
class HalvingConfig(ScheduleConfig):
    """One rate for `hold`, then half of it, and half of that after each further `every`; both are counted from the
    start of the run, and below 1 they are parts of it, from 1 on steps.

    The defaults are those of Sutskever et al. 2014, section 3.4: of 7.5 epochs, 5 at one rate, then halved each half.
    """

    warmup: float = 0.0
    hold: float = 2 / 3  # how long the first rate is held
    every: float = 1 / 15  # how long each further rate is held

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, right in (("hold", self.hold, self.hold >= 0), ("every", self.every, self.every > 0)):
            if not (right and value < math.inf):
                raise ConfigError(f"schedule.{name} is {value}; give a part of the run below 1, or a number of steps")

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
    """The peak rate of 2017's formula: scale * width^-0.5 * min(step^-0.5, step * warmup^-1.5) at step = warmup."""
    return scale / math.sqrt(width * warmup)
