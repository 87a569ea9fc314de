"""Predictions for texts or text pairs: a class, a number, or several labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from headway.config import register
from headway.data import ClassSplitConfig, Splits, Table, read_table, split_by_text
from headway.domains.understanding.encoder_inputs import (
    EncodedTextDataset,
    EncoderTaskConfig,
    batch_tokens,
    check_encoder,
)
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, RngKey
from headway.learn.objectives.targets import ChosenTarget, TargetConfig, TargetSamples, choose_target, target_task
from headway.learn.token_rows import frame_for, frame_rows
from headway.nn.models import ModelConfig, PooledHeadConfig, TransformerConfig
from headway.nn.parts.norm import RMSNormConfig

_POOLED_HEADS = ("classes", "number", "embedding", "pooled", "next")  # heads in a start model whose pooling is kept


@register("classification")
@dataclass(frozen=True)
class ClassificationConfig(EncoderTaskConfig, TargetConfig):
    """Predict the class, the number or the labels of each text, depending on the labels or `target`.

    `text` and `label` name the columns. `pool` sets the pooling: first, mean or last token (none: what suits the
    model). `smoothing` is label smoothing (Szegedy et al. 2016). `skip_bad` skips texts without a label and counts
    them.
    """

    text: str = "text"  # column with the texts
    pool: Literal["first", "mean", "last"] | None = None
    smoothing: float = 0.0
    split: ClassSplitConfig = ClassSplitConfig(validation=0.1, test=0.1)  # held-out shares
    skip_bad: bool = False  # whether to skip and count texts without a label

    @property
    def columns(self) -> dict[str, str]:
        """Column names by their role."""
        return {"text": self.text, "label": self.label}

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        table = read_table(recipe.files(data), self.columns, target="label")
        noun = "pair" if "text2" in table.columns else "text"
        chosen = choose_target(table.columns["label"], table.location, self, noun, self.skip_bad)
        dataset = TextDataset(self, recipe, table.select(chosen.rows), chosen, workspace)
        return target_task(dataset, self, noun, self.smoothing, workspace)


@register("pairs")
@dataclass(frozen=True)
class TextPairsConfig(ClassificationConfig):
    """Predict the class or the labels of each text pair, or its number if all labels are numbers.

    `text`, `text2` and `label` name the columns. Pairs are split by their first text.
    """

    numbers_as_targets: ClassVar[bool] = True
    number_goal: ClassVar[str] = "spearman"

    text2: str = "text2"  # column with the second texts

    @property
    def columns(self) -> dict[str, str]:
        return {"text": self.text, "text2": self.text2, "label": self.label}


class TextDataset(EncodedTextDataset, TargetSamples):
    """A table of texts or text pairs with their targets."""

    def __init__(
        self,
        config: ClassificationConfig,
        recipe: Recipe,
        table: Table,
        chosen: ChosenTarget,
        workspace: Path,
    ) -> None:
        first_texts, second_texts = table.columns["text"], table.columns.get("text2")
        self.table, self.config, self.from_start = table, config, recipe.start is not None
        self.seed, self.batch_size = recipe.train.seed, batch_tokens(recipe)
        classes = table.columns["label"] if chosen.target.kind == "class" else None
        self.splits = Splits(
            split_by_text(first_texts, table.named_splits, config.split, classes), np.arange(len(table))
        )
        train_texts = (
            column[row]
            for column in (first_texts, second_texts or [])
            for row in self.splits.indices["train"]
            if column
        )
        self.codec = config.codec_of(train_texts, workspace)
        first = self.codec.encode_batch(first_texts)
        second = self.codec.encode_batch(second_texts) if second_texts is not None else None
        frame, limit = frame_for(self.codec, check_encoder(recipe.model)), config.limit(recipe)
        self.rows = frame_rows(frame, first, second, limit, table.location)
        self.assign_targets(table.columns["label"], chosen, table.location, workspace)

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, and targets of shape [B] or [B, C]."""
        inputs = self.rows.inputs(rows)
        return Batch(inputs, torch.from_numpy(self.targets[rows]), len(rows), inputs.computed)

    def contents(self) -> Contents:
        columns = self.table.columns
        return {**super().contents(), "texts": tuple(columns[role] for role in ("text", "text2") if role in columns)}

    def describe_row(self, row: int) -> str:
        return " | ".join(self.table.columns[role][row] for role in ("text", "text2") if role in self.table.columns)

    def with_head(self, model: ModelConfig, name: str, outputs: int) -> TransformerConfig:
        """`model` with one head for complete texts. A start model keeps the pooling of its sentence embeddings, or else
        its BERT pooler; otherwise it gets a BERT-style one. A model from scratch uses the mean of its tokens; a causal
        model uses the last token.
        """
        encoder = check_encoder(model)
        rate = encoder.embed.dropout
        heads = (encoder.heads.get(name) for name in _POOLED_HEADS)
        poolers = [
            head for head in heads if isinstance(head, PooledHeadConfig) and self.config.pool in (None, head.pool)
        ]
        if poolers:
            # Sentence embeddings were trained at unit length, so the classifier normalises them too.
            norm = RMSNormConfig(weight=False) if poolers[0].unit else poolers[0].norm
            head = replace(poolers[0], outputs=outputs, dropout=poolers[0].dropout or rate, unit=False, norm=norm)
        elif self.config.pool is None and self.from_start and not encoder.stack.causal:
            head = PooledHeadConfig(outputs, dense=True, activation="tanh", dropout=rate)
        else:
            head = PooledHeadConfig(
                outputs, self.config.pool or ("last" if encoder.stack.causal else "mean"), dropout=rate
            )
        return replace(encoder, heads={name: replace(head, scale=1.0, shift=0.0)})
