"""How a language model of a user's texts is fitted to their amount and to the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.data import chunks, text_sources
from headway.domains.text.task import Language
from headway.train import Recipe
from headway.train.scale import Scale, Settings, Settled, strain

_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 8), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_LOOKED_AT = 1 << 24  # characters that are counted; of more the number is told from the sizes of the files
_VOCABULARIES = ((300_000, 512), (1_500_000, 1024), (8_000_000, 2048), (40_000_000, 4096), (200_000_000, 8192))
_MOST_SYMBOLS = 16384


@dataclass(frozen=True)
class TextScale(Scale):
    """Rows of 256 tokens, and vocabularies that grow with the text: each symbol is to be seen often."""

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        size = 0
        for source in text_sources(paths):
            for chunk in chunks(source):
                size += len(chunk.text)
                if size >= _LOOKED_AT:
                    break
        symbols = next((count for most, count in _VOCABULARIES if size < most), _MOST_SYMBOLS)
        return Settled({"task.size": symbols}, f"a vocabulary of {symbols:,} for {size / 1e6:.2g} million characters")

    def sizes(self, recipe: Recipe) -> Sequence[Settings]:
        return [{"model.width": width, "model.depth": depth, "model.heads": heads} for width, depth, heads in _SHAPES]

    def amount(self, task: Language) -> int:
        return task.tokens("train")

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        read = strain(epochs, crowd)
        return {"model.dropout": 0.0 if read < 4 else 0.1 if read < 12 else 0.2 if read < 40 else 0.3}


SCALES = {"text": TextScale(foretells=True)}
