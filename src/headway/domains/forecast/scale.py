"""How a model of a user's series is fitted to their amount and to the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headway.learn import Recipe
from headway.learn.scale import Law, Scale, Settings, Shapes


@dataclass(frozen=True)
class ForecastScale(Scale):
    """Batches are of windows; each value is foretold in as many of them as the horizon has steps."""

    law: Law = field(default_factory=lambda: Law(0.1, 3.0, 0.3, 10.5, 0.35))
    batch: str = "train.batch_size"
    least: int = 32
    most: int = 512
    unit: str = "value"
    shapes: Shapes = ((16, 1, 2), (32, 1, 2), (48, 2, 3), (64, 2, 4), (96, 3, 4), (128, 4, 4), (192, 4, 6), (256, 6, 8))

    def rates(self, recipe: Recipe, width: int, depth: int, batch: int) -> Settings:
        """The recipe's own were tried at one layer."""
        return {"optim.lr": recipe.optim.lr / math.sqrt(depth)}

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        return {"model.dropout": 0.0 if epochs < 20 else 0.1 if epochs < 60 else 0.2}


SCALES = {"forecast": ForecastScale()}
