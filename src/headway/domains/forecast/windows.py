"""What a model reads of a series, and in which scale it says what comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.metrics.forecasts import simple_forecasts

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FLAT = 0.05  # of the deviation of a whole series is the least that a window is scaled by


class Window(NamedTuple):
    """Patches as the model reads them, and the quantiles and the unit by which it says others."""

    inputs: Float[Tensor, "B T C"]
    simple: Float[np.ndarray, "B S Q"]
    unit: Float[np.ndarray, "B 1 1"]

    def scaled(self, said: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """What is said, in the scale of the data; sorted, which makes no quantiles worse (Chernozhukov, Fernandez-Val
        and Galichon 2010).
        """
        return np.sort(self.simple + self.unit * said, -1)


@dataclass(frozen=True)
class WindowCodec:
    """The last `context` values as patches of `patch` steps, for the `horizon` next ones.

    Values are read less their mean, by their deviation (z), beside the place of each step in the season. What is said
    are differences from the quantiles of a simple forecast, in its mean error over training, the `spread`: the `line`
    and, in that unit, the quantiles of its `errors` at each step of the horizon. A model that has learnt nothing yet
    says these. `unit` and `step` are those of the times.
    """

    context: int
    horizon: int
    season: int
    patch: int
    unit: str
    step: int
    line: str = "last"
    spread: float = 1.0
    errors: tuple[tuple[float, ...], ...] = ((0.0,),)

    @property
    def numbers(self) -> int:
        """Numbers of a patch."""
        return self.patch * (3 if self.season > 1 else 1)

    def read(
        self, past: Float[np.ndarray, "B C"], steps: Int[np.ndarray, "B"], least: Float[np.ndarray, "B"]
    ) -> Window:
        """Windows of the values before the steps with these numbers; `least` as `flat` says of their series."""
        mean, unit = past.mean(1, keepdims=True), np.maximum(past.std(1), least)[:, None]
        parts = [(past - mean) / unit]
        if self.season > 1:
            turn = 2 * np.pi * ((steps[:, None] + np.arange(-self.context, 0)) % self.season) / self.season
            parts += [np.sin(turn), np.cos(turn)]
        inputs = torch.from_numpy(np.stack(parts, -1).astype(np.float32)).reshape(len(past), -1, self.numbers)
        line, unit = simple_forecasts(past, self.horizon, self.season)[self.line], unit[..., None] * self.spread
        return Window(inputs, line[..., None] + unit * np.array(self.errors), unit)


def flat(values: Float[np.ndarray, "N"]) -> float:
    """The least that windows of a series are scaled by, so that one in which nothing changes is no infinity."""
    return _FLAT * float(values.std()) or 1.0
