"""How an encoder that starts from nothing is fitted to a user's labelled texts and to the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from headway.data import read_conll, read_table
from headway.data.splits import side_number
from headway.domains.understanding.classification import ClassificationConfig, TextPairsConfig
from headway.domains.understanding.embedding import EmbeddingConfig
from headway.domains.understanding.tagging import TaggedSentences
from headway.learn import Recipe, Task
from headway.learn.scale import Law, Scale, Settings, Settled, Shapes, below

_SHAPES = ((64, 1, 2), (96, 1, 3), (128, 1, 4), (128, 2, 4), (192, 2, 6), (256, 3, 8), (384, 4, 6), (512, 6, 8))
_VOCABULARIES = ((1e5, 1000), (2e6, 2000), (2e7, 4000), (2e8, 8000), (math.inf, 16000))  # characters, symbols
_PAIRS = 64  # in a batch of an embedding until its size is chosen

_LAW = Law(floor=0.0, size=17.0, alpha=0.34, data=15.0, beta=0.34, repeats=25.0, excess=40.0)
"""Of labels a text, by two sizes on the 77 intents of banking77 in 90 s of a core: 327,000 texts through 49,000
parameters end at a loss of 0.594, 121,000 through 197,000 at 0.487. Fewer texts than symbols feed a model, and with
dropout what is read again is worth more.
"""


@dataclass(frozen=True)
class LabelledScale(Scale):
    """Small encoders, and vocabularies that grow with the text. A target is a text."""

    law: Law = _LAW
    most: int = 32768
    noise: float = 0.5
    unit: str = "text"
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        count, size = self.corpus(recipe, paths)
        symbols = below(_VOCABULARIES, size)
        reason = f"a vocabulary of {symbols:,} for {count:,} samples of {size / max(1, count):.0f} characters"
        return Settled({"task.size": symbols, **self.held_out(count)}, reason)

    def corpus(self, recipe: Recipe, paths: Sequence[Path]) -> tuple[int, int]:
        """Samples that no file's name holds out, and their characters. UserError for what cannot be read."""
        task = cast(ClassificationConfig, recipe.task)
        names = {"text": task.text, "label": task.label}
        if isinstance(task, TextPairsConfig):
            names["text2"] = task.text2
        return _table(paths, names)

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        rate = 0.0 if epochs < 3 else 0.1 if epochs < 10 else 0.2 if epochs < 40 else 0.3
        smoothing = {"task.smoothing": 0.1} if epochs >= 10 and hasattr(recipe.task, "smoothing") else {}
        return {"model.dropout": rate, **smoothing}


@dataclass(frozen=True)
class TaggingScale(LabelledScale):
    """A target is a word with its tag."""

    law: Law = field(default_factory=lambda: Law(0.0, 17.0, 0.34, 30.0, 0.34, 25.0, 40.0))
    noise: float = 2.0
    unit: str = "word"

    def corpus(self, recipe: Recipe, paths: Sequence[Path]) -> tuple[int, int]:
        text = read_conll(paths)
        kept = [one for one, side in zip(text.sentences, text.named) if side <= side_number("train")]
        return len(kept), sum(len(word) + 1 for one in kept for word in one.words)

    def amount(self, task: Task) -> int:
        tagged = cast(TaggedSentences, cast(Task, task).examples)
        return int((tagged.places[tagged.splits.rows("train")] >= 0).sum())


@dataclass(frozen=True)
class EmbeddingScale(LabelledScale):
    """A target is a text with its partner. A batch is the negatives, too, so that it is never small without need."""

    batch: str = "train.batch_size"
    least: int = 2
    most: int = 512
    noise: float = 8.0
    unit: str = "pair"

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        found = super().settle(recipe, paths, minutes)
        count, _ = self.corpus(recipe, paths)
        trained = count * (1 - sum(self.held_out(count).values()))
        return Settled({**found.settings, "train.batch_size": max(2, min(_PAIRS, int(trained / 2)))}, found.reason)

    def corpus(self, recipe: Recipe, paths: Sequence[Path]) -> tuple[int, int]:
        task = cast(EmbeddingConfig, recipe.task)
        return _table(paths, {"text": task.text, "text2": task.text2, "label": task.label}, ("text2", "label"))


def _table(paths: Sequence[Path], names: dict[str, str], optional: Sequence[str] = ()) -> tuple[int, int]:
    table = read_table(paths, names, optional)
    texts = [table.columns[use] for use in ("text", "text2") if use in table.columns]
    kept = [row for row, side in enumerate(table.named) if side <= side_number("train")]
    return len(kept), sum(len(column[row]) for column in texts for row in kept)


SCALES = {
    "classification": LabelledScale(),
    "pairs": LabelledScale(),
    "tagging": TaggingScale(),
    "embedding": EmbeddingScale(),
}
