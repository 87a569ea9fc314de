"""How the loss of a model falls with its size and with what it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Forecast(NamedTuple):
    """The loss that a run is to end with, and an interval in which nine of ten runs ended."""

    low: float
    loss: float
    high: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = floor + size N^-alpha + data D'^-beta in nats a target, for N parameters that compute and D targets
    (Hoffmann et al. 2022, equation 2), of which `unique` are different ones.

    What is read again is worth less each time (Muennighoff et al. 2023, equation 5): after U different targets and R
    readings more, D' = U + U r (1 - exp(-R / r)) with r `repeats`; and parameters beyond those that U targets feed are
    worth less in the same way, with `excess`. The defaults have the papers' exponents, which hold far below their
    sizes, too, and the papers' share between `size` and `data`: for models of 0.3 to 1 million parameters that read a
    novel of 3 MB for two core-minutes and four (benchmarks/results/budget.json), a seventh of both fits within 0.03. Of
    another text all terms would be others, so it is differences between sizes that count here.
    """

    floor: float = 2.0
    size: float = 61.0
    alpha: float = 0.34
    data: float = 62.0
    beta: float = 0.28
    repeats: float = 15.39
    excess: float = 5.31
    falls: tuple[float, float, float] = (0.9, 1.08, 1.4)

    def loss(self, parameters: float, seen: float, unique: float) -> float:
        """The loss after `seen` targets, of which `unique` are different ones; infinite after none."""
        if seen <= 0 or unique <= 0:
            return math.inf
        fed = min(seen, unique)
        read = _discounted(fed, seen / fed - 1, self.repeats)
        fitting = min(parameters, self.fed(fed))
        sized = _discounted(fitting, parameters / fitting - 1, self.excess)
        return self.floor + self.size * sized**-self.alpha + self.data * read**-self.beta

    def forecast(self, loss: float, parameters: float, seen: float, end: float, unique: float) -> Forecast:
        """The end of a run whose validation loss was `loss` after `seen` of `end` targets, at a flat rate.

        The law tells how far it will fall, of which `falls` are the parts that runs fell in truth: the least, the
        middle and the most of them (their rate falls to 0 meanwhile, which the law's models did at both ends).
        """
        fall = self.loss(parameters, seen, unique) - self.loss(parameters, end, unique)
        least, middle, most = (loss - part * fall for part in self.falls)
        return Forecast(most, middle, least)

    def fed(self, targets: float) -> float:
        """The parameters at which one more is worth as much as the targets that its time would read."""
        return (self.alpha * self.size / (self.beta * self.data)) ** (1 / self.alpha) * targets ** (
            self.beta / self.alpha
        )


def _discounted(first: float, more: float, worth: float) -> float:
    """So many, and `more` times as many that are worth less and less: `worth` times as many at the most."""
    return first * (1 + worth * (1 - math.exp(-more / worth)))
