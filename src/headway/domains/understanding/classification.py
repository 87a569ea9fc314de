"""One thing said of a whole text, or of two: a class, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from headway.config import register
from headway.data import ClassSplitConfig, Splits, Table, read_table, sides_of
from headway.domains.understanding.texts import EncodedTexts, EncoderTaskConfig, batch_tokens, check_encoder
from headway.errors import UserError, logger
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Chance, Contents
from headway.learn.objectives.classes import HEAD, Classes, Classified
from headway.learn.objectives.regression import Regression, Valued
from headway.learn.rows import frame_for, framed
from headway.nn.models import ModelConfig, PooledHeadConfig, TransformerConfig
from headway.nn.models.pooled import Pool
from headway.nn.parts.norm import RMSNormConfig

_LOG = logger(__name__)
_POOLERS = ("classes", "embedding", "pooled", "next")  # heads of a start model that pool as classes need it


@register("classification")
@dataclass(frozen=True)
class ClassificationConfig(EncoderTaskConfig):
    """Give each text its class.

    `text` and `label` are the names of the columns. `pool` says what of a text's tokens is judged: the first, the mean
    or the last; none for what suits the model. `smoothing` spreads that share of each label over all classes (Szegedy
    et al. 2016).
    """

    text: str = "text"  # column of the texts
    label: str = "label"  # column of the labels
    pool: Literal["first", "mean", "last"] | None = None
    smoothing: float = 0.0
    split: ClassSplitConfig = ClassSplitConfig(validation=0.1, test=0.1)  # what is held out

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        table = read_table(recipe.files(data), {"text": self.text, "label": self.label})
        return self.classes(recipe, table, workspace)

    def classes(self, recipe: Recipe, table: Table, workspace: Path) -> Task:
        """The task over a table of texts, or pairs, and their classes."""
        texts = LabelledTexts(self, recipe, table, workspace)
        return Task(texts, TextClasses(texts.what, self.smoothing, Pooling(self.pool, recipe.start is not None)))


@register("pairs")
@dataclass(frozen=True)
class TextPairsConfig(ClassificationConfig):
    """Give each pair of texts its class, or its number where all labels are numbers (`target` says which of the two).

    `text`, `text2` and `label` are the names of the columns. Pairs are split by their first text.
    """

    text2: str = "text2"  # column of the second texts
    target: Literal["auto", "class", "number"] = "auto"  # classes, numbers, or what the labels look like

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        names = {"text": self.text, "text2": self.text2, "label": self.label}
        table = read_table(recipe.files(data), names)
        if self.target == "class" or (self.target == "auto" and None in map(_number, table.columns["label"])):
            return self.classes(recipe, table, workspace)
        if self.target == "auto":
            _LOG.warning("all labels are numbers, which are foretold as such; task.target=class makes classes of them")
        texts = ValuedTexts(self, recipe, table, workspace)
        return Task(texts, TextNumbers(texts.what, texts.deviation, Pooling(self.pool, recipe.start is not None)))


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


class TableTexts(EncodedTexts):
    """A table of texts or pairs. `targets` are what is to be said of each: its class, or its number."""

    targets: np.ndarray

    def __init__(
        self,
        config: ClassificationConfig,
        recipe: Recipe,
        table: Table,
        workspace: Path,
        classes: Sequence[str] | None = None,
    ) -> None:
        """`classes` [N] are the samples' labels where splits may be stratified by them."""
        texts, seconds = table.columns["text"], table.columns.get("text2")
        self.table = table
        self.what = "pair" if seconds else "text"
        self.seed, self.size = recipe.train.seed, batch_tokens(recipe)
        self.splits = Splits(sides_of(texts, table.named, config.split, classes), np.arange(len(table)))
        trained = (column[row] for column in (texts, seconds or []) for row in self.splits.sides["train"] if column)
        self.codec = config.codec_of(trained, workspace)
        first = self.codec.encode_batch(texts)
        second = self.codec.encode_batch(seconds) if seconds is not None else None
        frame, limit = frame_for(self.codec, check_encoder(recipe.model)), config.limit(recipe)
        self.rows = framed(frame, first, second, limit, table.place)

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Symbols, and what is to be said of their texts, [B]."""
        inputs = self.rows.inputs(rows)
        return Batch(inputs, torch.from_numpy(self.targets[rows]), len(rows), inputs.computed)

    def contents(self) -> Contents:
        columns = self.table.columns
        return {**super().contents(), "texts": tuple(columns[use] for use in ("text", "text2") if use in columns)}

    def shown(self, row: int) -> str:
        return " | ".join(self.table.columns[use][row] for use in ("text", "text2") if use in self.table.columns)


class LabelledTexts(TableTexts, Classified):
    """Texts or pairs with classes."""

    def __init__(self, config: ClassificationConfig, recipe: Recipe, table: Table, workspace: Path) -> None:
        given = table.columns["label"]
        super().__init__(config, recipe, table, workspace, given)
        trained = {given[row] for row in self.splits.sides["train"]}
        self.targets = self.classes = self.numbered(given, trained, table.place, workspace)


class ValuedTexts(TableTexts, Valued):
    """Texts or pairs with numbers."""

    def __init__(self, config: TextPairsConfig, recipe: Recipe, table: Table, workspace: Path) -> None:
        super().__init__(config, recipe, table, workspace)
        given = table.columns["label"]
        found = [_number(label) for label in given]
        wrong = next((row for row, value in enumerate(found) if value is None), None)
        if wrong is not None:
            raise UserError(
                f"{table.place(wrong)}: the label {given[wrong]!r} is not a number; correct it, or task.target=class"
            )
        self.targets = self.values = np.array(found, np.float32)


class Pooling(NamedTuple):
    """What of a text's tokens is judged, None for what suits the model, and whether that was `started` from another."""

    pool: Pool | None
    started: bool

    def head(self, model: ModelConfig, outputs: int) -> TransformerConfig:
        """`model` with one head over whole texts. A model that was started from keeps its own pooling: that of its
        sentence vectors, or else its pooler (BERT's), or it gets one of BERT's kind. One from scratch takes the mean of
        its tokens; one that sees only earlier tokens, its last.
        """
        encoder = check_encoder(model)
        rate = encoder.embed.dropout
        heads = (encoder.heads.get(name) for name in _POOLERS)
        poolers = [head for head in heads if isinstance(head, PooledHeadConfig) and self.pool in (None, head.pool)]
        if poolers:
            # Sentence vectors were trained at unit length, which their classes are read from, too.
            norm = RMSNormConfig(weight=False) if poolers[0].unit else poolers[0].norm
            head = replace(poolers[0], outputs=outputs, dropout=poolers[0].dropout or rate, unit=False, norm=norm)
        elif self.pool is None and self.started and not encoder.stack.causal:
            head = PooledHeadConfig(outputs, dense=True, activation="tanh", dropout=rate)
        else:
            head = PooledHeadConfig(outputs, self.pool or ("last" if encoder.stack.causal else "mean"), dropout=rate)
        return replace(encoder, heads={HEAD: head})


class TextClasses(Classes[LabelledTexts]):
    """The class of a text, or of two."""

    def __init__(self, unit: str, smoothing: float, pooling: Pooling) -> None:
        super().__init__(unit, smoothing)
        self.pooling = pooling

    def adapt(self, model: ModelConfig, examples: LabelledTexts) -> ModelConfig:
        """`model` with a head of as many classes as there are."""
        return self.pooling.head(model, len(examples.labels))


class TextNumbers(Regression[ValuedTexts]):
    """The number of a text, or of two."""

    def __init__(self, unit: str, deviation: float, pooling: Pooling) -> None:
        super().__init__(unit, deviation)
        self.pooling = pooling

    def adapt(self, model: ModelConfig, examples: ValuedTexts) -> ModelConfig:
        """`model` with a head of one number."""
        return self.pooling.head(model, 1)
