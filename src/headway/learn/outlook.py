"""What an early evaluation says of the end of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class LossForecast(NamedTuple):
    """The validation loss that a run is to end with, and an interval in which four of five runs end."""

    low: float
    loss: float
    high: float


@dataclass(frozen=True)
class Descent:
    """How the validation loss of a domain's runs goes on to fall: by a factor of f^p after a share f of the steps,
    with p `own` plus `slope` times the slope that the training loss has there. Four of five runs had a p between
    `least` less and `most` more than that. benchmarks/predictions.py fits both sides.
    """

    own: float
    slope: float
    least: float
    most: float

    def forecast(self, loss: float, slope: float, share: float) -> LossForecast:
        """The end of a run whose validation loss is `loss` after a `share` of its steps."""
        power = self.own + self.slope * slope
        high, middle, low = (loss * share**p for p in (power - self.least, power, power + self.most))
        return LossForecast(low, middle, high)


def slope_of(training: Sequence[tuple[int, float]], step: int) -> float | None:
    """How steeply the training loss falls before a step: by which power of the steps, told from the mean of the last
    half of them and that of the quarter before it. `training` are steps, each with the mean loss since the one before
    it. None where one of the two has no loss above 0.
    """
    means = []
    for first, last in ((step / 4, step / 2), (step / 2, step)):
        losses = [loss for at, loss in training if first < at <= last and loss > 0]
        if not losses:
            return None
        means.append(sum(losses) / len(losses))
    return math.log(means[0] / means[1]) / math.log(2)
