"""What a run's loss will be: the scaling law that sizes are chosen by, and a forecast from an early evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = floor + size N^-alpha + data D'^-beta in nats per target, for N active parameters and D targets
    (Hoffmann et al. 2022, equation 2), of which `unique` are distinct.

    Repeated data are worth less in each epoch (Muennighoff et al. 2023, equation 5): after U unique targets and R
    further epochs, D' = U + U r (1 - exp(-R / r)), where r is `repeats`. Parameters beyond those that U targets can
    train lose value in the same way, with `excess`. The defaults use the papers' exponents, which also hold far below
    the papers' model sizes, and the papers' ratio of `size` to `data`. With a seventh of both, the law fits within 0.03
    for models with 0.3 to 1 million parameters trained on a 3 MB novel for two and four core-minutes
    (benchmarks/results/budget.json). The terms differ between datasets, so only differences between sizes matter here.
    """

    floor: float = 2.0
    size: float = 61.0
    alpha: float = 0.34
    data: float = 62.0
    beta: float = 0.28
    repeats: float = 15.39
    excess: float = 5.31

    def loss(self, parameters: float, targets: float, unique: float) -> float:
        """The loss after `targets` training targets, of which `unique` are distinct; infinite for 0."""
        if targets <= 0 or unique <= 0:
            return math.inf
        unique_seen = min(targets, unique)
        effective_targets = _with_diminishing_returns(unique_seen, targets / unique_seen - 1, self.repeats)
        useful_parameters = min(parameters, self.optimal_parameters(unique_seen))
        effective_parameters = _with_diminishing_returns(
            useful_parameters, parameters / useful_parameters - 1, self.excess
        )
        return self.floor + self.size * effective_parameters**-self.alpha + self.data * effective_targets**-self.beta

    def optimal_parameters(self, targets: float) -> float:
        """The compute-optimal number of parameters for a number of targets."""
        return (self.alpha * self.size / (self.beta * self.data)) ** (1 / self.alpha) * targets ** (
            self.beta / self.alpha
        )


def _with_diminishing_returns(first: float, repetitions: float, limit: float) -> float:
    """`first` plus its `repetitions`, whose diminishing value adds up to at most `limit` times `first`."""
    return first * (1 + limit * (1 - math.exp(-repetitions / limit)))


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
