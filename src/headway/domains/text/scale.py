"""How a language model of a user's texts is fitted to their amount and to the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from headway.data import characters
from headway.domains.text.task import Documents
from headway.learn import Recipe, Task
from headway.learn.scale import Scale, Settings, Settled, Shapes, below, strain

_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 8), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_LOOKED_AT = 300_000_000  # characters that are counted: more make no difference
_VOCABULARIES = ((3e5, 512), (1.5e6, 1024), (8e6, 2048), (4e7, 4096), (2e8, 8192), (math.inf, 16384))


@dataclass(frozen=True)
class TextScale(Scale):
    """Rows of 256 tokens, and vocabularies that grow with the text: each symbol is to be seen often."""

    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        size = characters(paths, _LOOKED_AT)
        symbols = below(_VOCABULARIES, size)
        return Settled({"task.size": symbols}, f"a vocabulary of {symbols:,} for {size / 1e6:.2g} million characters")

    def amount(self, task: Task) -> int:
        return cast(Documents, cast(Task, task).examples).tokens("train")

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        read = strain(epochs, crowd)
        return {"model.dropout": 0.0 if read < 4 else 0.1 if read < 12 else 0.2 if read < 40 else 0.3}


SCALES = {"text": TextScale(foretells=True)}
