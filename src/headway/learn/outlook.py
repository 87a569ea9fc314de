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


_LEAST = 0.02  # added to a slope, as one that is flat at first may get steeper


@dataclass(frozen=True)
class Descent:
    """How the validation loss of a domain's runs goes on to fall: by a factor of f^p after a share f of the steps.

    Here p is `middle` times the slope that the training loss has there, plus 0.02; in four of five runs it was between
    `least` and `most` times that. With a `least` below 0 losses may rise. benchmarks/predictions.py fits all three.
    """

    least: float
    middle: float
    most: float

    def forecast(self, loss: float, slope: float, share: float) -> LossForecast:
        """The end of a run whose validation loss is `loss` after a `share` of its steps."""
        steep = max(slope, 0.0) + _LEAST
        low, middle, high = (loss * share ** (part * steep) for part in (self.most, self.middle, self.least))
        return LossForecast(low, middle, high)

    @staticmethod
    def part(loss: float, slope: float, share: float, ended: float) -> float:
        """What would have been the right `middle` for a run that `ended` with this loss."""
        return math.log(ended / loss) / math.log(share) / (max(slope, 0.0) + _LEAST)


def slope_of(training: Sequence[tuple[int, float]], step: int) -> float | None:
    """How steeply the training loss falls before a step: by which power of the steps, from the means of the last
    quarter of them and of the quarter before it. `training` are steps, each with the mean loss since the one before
    it. None where one of the two has no loss above 0.
    """
    means = []
    for first, last in ((0.5 * step, 0.75 * step), (0.75 * step, step)):
        losses = [loss for at, loss in training if first < at <= last and loss > 0]
        if not losses:
            return None
        means.append(sum(losses) / len(losses))
    return math.log(means[0] / means[1]) / math.log(0.875 / 0.625)
