"""Forecast a run's final loss from an early evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class LossForecast(NamedTuple):
    """The predicted final validation loss, and an 80 % interval."""

    low: float
    loss: float
    high: float


# The final loss from the current loss, the slope of the training loss, and the completed fraction of the steps.
LossPredictor = Callable[[float, float, float], LossForecast]
EARLY_FRACTION, LATE_FRACTION = 0.25, 0.6  # fractions of a run between which the final loss is predicted
_MIN_SLOPE = 0.02  # added to the slope, because a flat curve may become steeper


@dataclass(frozen=True)
class Descent:
    """How a domain's validation loss continues to fall: by a factor of f^p after a fraction f of the steps.

    p is `middle` times the slope of the training loss at that point plus 0.02; in 80 % of runs the factor was between
    `low` and `high` instead of `middle`. A negative `low` allows rising losses. benchmarks/predictions.py fits all
    three.
    """

    low: float
    middle: float
    high: float

    def forecast(self, loss: float, slope: float, fraction: float) -> LossForecast:
        """Predict the final loss for a run whose validation loss is `loss` after a `fraction` of its steps."""
        slope_floor = max(slope, 0.0) + _MIN_SLOPE
        low, middle, high = (loss * fraction ** (factor * slope_floor) for factor in (self.high, self.middle, self.low))
        return LossForecast(low, middle, high)

    @staticmethod
    def matching_middle(loss: float, slope: float, fraction: float, final_loss: float) -> float:
        """The `middle` that would have predicted the final loss exactly."""
        return math.log(final_loss / loss) / math.log(fraction) / (max(slope, 0.0) + _MIN_SLOPE)


def slope_of(training: Sequence[tuple[int, float]], step: int) -> float | None:
    """The slope of the training loss before a step, as the exponent of a power law in the number of steps, computed
    from the mean over the last quarter of the steps and the mean over the quarter before it. `training` has (step, mean
    loss since the previous entry). None if either quarter has no loss above 0.
    """

    means = []
    for first, last in ((0.5 * step, 0.75 * step), (0.75 * step, step)):
        losses = [loss for line_step, loss in training if first < line_step <= last and loss > 0]
        if not losses:
            return None
        means.append(sum(losses) / len(losses))
    return math.log(means[0] / means[1]) / math.log(0.875 / 0.625)
