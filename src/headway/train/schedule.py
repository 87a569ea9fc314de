"""Learning rates over a run: a factor on the optimiser's rates, a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headway.config import family, register
from headway.errors import ConfigError


@family
@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` raises the factor linearly from 0: below 1 it is a part of the run, from 1 on a number of steps."""

    warmup: float = 0.02

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ConfigError(f"schedule.warmup is {self.warmup}; give 0 or more")

    def factor(self, step: int, steps: int) -> float:
        """The factor for update `step` (from 0) of `steps`."""
        rise = warmup_steps(self.warmup, steps)
        if step < rise:
            return (step + 1) / rise
        return self.after(step, rise, steps)

    def after(self, step: int, rise: int, steps: int) -> float:
        """The factor after a warm-up of `rise` steps."""
        raise NotImplementedError


def warmup_steps(warmup: float, steps: int) -> int:
    """The length of a warm-up in steps."""
    return round(warmup * steps) if warmup < 1 else round(warmup)


@register("constant")
@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """One rate."""

    def after(self, step: int, rise: int, steps: int) -> float:
        return 1.0


@register("cosine")
@dataclass(frozen=True)
class CosineConfig(ScheduleConfig):
    """Half a cosine from 1 to `floor` (Loshchilov and Hutter 2017)."""

    floor: float = 0.1

    def after(self, step: int, rise: int, steps: int) -> float:
        done = min(1.0, (step + 1 - rise) / max(1, steps - rise))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


@register("wsd")
@dataclass(frozen=True)
class WSDConfig(ScheduleConfig):
    """Warm-up, a stable rate, and over the last `decay` part of the run a line to 0 (Hu et al. 2024)."""

    decay: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise ConfigError(f"schedule.decay is {self.decay}; give a part of the run above 0 and at most 1")

    def after(self, step: int, rise: int, steps: int) -> float:
        return min(1.0, (steps - step) / max(1.0, self.decay * steps))


@register("inverse_sqrt")
@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """Vaswani et al. 2017, section 5.3: sqrt(warmup / step) after the warm-up; `optim.lr` is the peak (`noam_peak`)."""

    warmup: float = 4000

    def after(self, step: int, rise: int, steps: int) -> float:
        return math.sqrt(max(1, rise) / (step + 1))


def noam_peak(width: int, warmup: int, scale: float = 1.0) -> float:
    """The peak rate of 2017's formula: scale * width^-0.5 * min(step^-0.5, step * warmup^-1.5) at step = warmup."""
    return scale / math.sqrt(width * warmup)
