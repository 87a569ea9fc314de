"""How a masked language model of a user's texts is fitted to their amount and to the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from headway.data import characters
from headway.domains.masked.task import MaskedConfig, MaskedTexts
from headway.learn import Recipe, Task
from headway.learn.scale import Law, Scale, Settings, Settled, Shapes, below

_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 4), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_LOOKED_AT = 1 << 24  # characters that are counted
_VOCABULARIES = ((3e5, 1000), (2e6, 2000), (8e6, 4000), (math.inf, 8192))  # characters, symbols


@dataclass(frozen=True)
class MaskedScale(Scale):
    """Vocabularies that grow with the text. A target is a hidden symbol; each reading of a text hides others."""

    # Of texts, but that a hidden symbol is told from both sides: it is taken to be worth three that are read once.
    law: Law = field(default_factory=lambda: Law(2.0, 61.0, 0.34, 45.0, 0.28, 60.0, 15.0))
    least: int = 1024
    noise: float = 4.0
    unit: str = "hidden symbol"
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        if cast(MaskedConfig, recipe.task).tokenizer is not None:
            return Settled({})
        size = characters(paths, _LOOKED_AT)
        symbols = below(_VOCABULARIES, size)
        reason = f"a vocabulary of {symbols:,} for {size / 1e6:.2g} million characters"
        return Settled({"task.size": symbols, "model.symbols": symbols}, reason)

    def amount(self, task: Task) -> int:
        texts = cast(MaskedTexts, cast(Task, task).examples)
        return max(1, round(texts.config.masking.rate * texts.tokens("train")))

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        return {"model.dropout": 0.0 if epochs < 20 else 0.1}


SCALES = {"masked": MaskedScale()}
