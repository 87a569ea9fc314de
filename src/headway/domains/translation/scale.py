"""How a translator of a user's pairs is fitted to their amount and to the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import cast

from headway.data import pairs
from headway.domains.translation.task import ParallelText
from headway.learn import Recipe, Task
from headway.learn.scale import Law, Scale, Settings, Settled, Shapes, below, strain

_SHAPES = (
    (48, 2, 2),
    (64, 2, 2),
    (96, 2, 3),
    (128, 3, 4),
    (160, 3, 5),
    (192, 4, 6),
    (256, 4, 8),
    (384, 5, 6),
    (512, 6, 8),
)
_COUNTED = 2_000_000  # pairs
_VOCABULARIES = ((5e5, 1000), (2e6, 2000), (2e7, 4000), (2e8, 8000), (math.inf, 16000))  # characters, symbols


@dataclass(frozen=True)
class PairsScale(Scale):
    """Encoder and decoder of the same size; vocabularies that grow with the text.

    What a translator has yet to learn falls twice as fast as in the law of plain texts: models of 0.49 and 1.9 million
    parameters on pairs of Tatoeba after two core-minutes and four (1.640, 2.172; 1.315, 1.565 nats).
    """

    law: Law = field(default_factory=lambda: Law(floor=0.0, size=115.0, data=118.0))
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        count = size = 0
        for source, target in islice(pairs(paths), _COUNTED):
            count, size = count + 1, size + len(source) + len(target)
        symbols = below(_VOCABULARIES, size)
        reason = f"a vocabulary of {symbols:,} for {count:,} pairs of {size / max(1, count):.0f} characters"
        return Settled({"task.size": symbols, **self.held_out(count)}, reason)

    def amount(self, task: Task) -> int:
        found = cast(ParallelText, cast(Task, task).examples).of("train")
        return int(found.target.lengths.sum()) + len(found)

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        read = strain(epochs, crowd)
        return {"model.dropout": 0.0 if read < 4 else 0.1 if read < 10 else 0.2 if read < 25 else 0.25}


SCALES = {"translation": PairsScale(foretells=True)}
