"""Recipes for encoders, trained from scratch or fine-tuned with --from, and how training from scratch scales with data
and time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from headway.data import ClassSplitConfig, read_conll, read_table
from headway.data.splits import split_code
from headway.domains.understanding.tagging import TaggedSentences, TaggingConfig
from headway.domains.understanding.task import ClassificationConfig, EmbeddingConfig, TextPairsConfig
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, Task, TaskConfig, TrainConfig
from headway.learn.generic import generic
from headway.learn.scaling import DataSettings, Scale, ScalingLaw, Settings, Shapes, lookup
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Full

_TRAIN = TrainConfig(steps=2000, batch_tokens=1024)
_SPLIT = ClassSplitConfig(validation=0.1, test=0.1, stratify=True)


def encoder(width: int, depth: int, heads: int, dropout: float = 0.1) -> TransformerConfig:
    """A small encoder to train from scratch: pre-norm, RoPE, two token types."""
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full(), rotary=RotaryConfig()),
        None,
        MLPConfig(activation="gelu"),
        dropout=dropout,
    )
    embed = TokenEmbedConfig(types=2, dropout=dropout)
    return TransformerConfig(width, 1, None, StackConfig(cycle((block,), depth), LayerNormConfig()), embed, {})


def _encoder_recipe(name: str, description: str, task: TaskConfig, train: TrainConfig) -> Recipe:
    """A recipe for a small encoder from scratch: normalised embeddings; residual branches and head initialised to
    zero.
    """
    embed = TokenEmbedConfig(norm=LayerNormConfig(), types=2, dropout=0.1)
    init = InitConfig("fan_in", residual="zero", embedding=0.05, head="zero")
    return generic(
        name,
        "understanding",
        description,
        model=replace(encoder(width=128, depth=2, heads=4), embed=embed, init=init),
        task=task,
        optim=MuonConfig(lr=0.02, weight_decay=0.1, adam_lr=3e-3, adam_betas=(0.9, 0.98), adam_weight_decay=0.05),
        train=train,
        expected="--minutes chooses size and steps for your data; better with --from a pre-trained encoder",
    )


def classification() -> Recipe:
    """Your own labelled texts."""
    description = "labelled texts: .csv, .tsv or .jsonl with text and label"
    return _encoder_recipe("classification", description, ClassificationConfig(split=_SPLIT), _TRAIN)


def pairs() -> Recipe:
    """Your own text pairs with labels or numbers."""
    description = "text pairs with labels or numbers: .csv, .tsv or .jsonl with text, text2 and label"
    return _encoder_recipe("pairs", description, TextPairsConfig(split=_SPLIT), _TRAIN)


def tagging() -> Recipe:
    """Your own tagged words."""
    description = "tagged words: CoNLL columns, one word per line with its tag in the last column"
    return _encoder_recipe("tagging", description, TaggingConfig(lowercase=False), _TRAIN)


def embedding() -> Recipe:
    """Your own related texts."""
    description = "related texts: .csv, .tsv or .jsonl with text and text2, or text and label"
    return _encoder_recipe("embedding", description, EmbeddingConfig(), TrainConfig(steps=1000, batch_size=64))


def banking77() -> Recipe:
    """Casanueva et al. 2020: bank customers' questions with 77 intents. The data set has its own test split; a tenth of
    the training part picks the best model.

    Uses mean pooling, as sentence encoders do; BERT's pooler, which is part of its published classifier format, needs
    --set task.pool=first.
    """
    return Recipe(
        name="banking77",
        domain="understanding",
        description="questions to a bank, 77 intents",
        data=("banking77",),
        model=encoder(width=128, depth=2, heads=4),
        task=ClassificationConfig(label="category", pool="mean", split=ClassSplitConfig(validation=0.1, test=0.0)),
        optim=AdamWConfig(lr=4e-4, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=CosineConfig(warmup=0.1, floor=0.0),
        train=TrainConfig(steps=720, batch_tokens=1024, evaluate_every=120),
        expected="with --from all-MiniLM-L6-v2, minutes on 2 cores",
    )


RECIPES = (classification, pairs, tagging, embedding, banking77)


_SHAPES = ((64, 1, 2), (96, 1, 3), (128, 1, 4), (128, 2, 4), (192, 2, 6), (256, 3, 8), (384, 4, 6), (512, 6, 8))
_VOCABULARIES = ((1e5, 1000), (2e6, 2000), (2e7, 4000), (2e8, 8000), (math.inf, 16000))  # (characters, tokens)
_DEFAULT_PAIRS = 64  # pairs per embedding batch until its size is chosen

_LAW = ScalingLaw(floor=0.0, size=17.0, alpha=0.34, data=15.0, beta=0.34, repeats=25.0, excess=40.0)
"""The scaling law for text labels, from two sizes on banking77's 77 intents in 90 s on one core: 49,000 parameters see
327,000 texts and end at a loss of 0.594; 197,000 see 121,000 and end at 0.487. A model needs fewer texts than it would
need tokens, and with dropout repeated epochs help longer.
"""


@dataclass(frozen=True)
class LabelledScale(Scale):
    """Small encoders, and vocabularies that grow with the text. A target is one text."""

    calibrated: bool = True
    law: ScalingLaw = _LAW
    max_batch: int = 32768
    noise_scale: float = 0.5
    unit: str = "text"
    shapes: Shapes = _SHAPES

    def data_settings(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
        count, num_characters = self.corpus(recipe, paths)
        vocab_size = lookup(_VOCABULARIES, num_characters)
        reason = (
            f"a vocabulary of {vocab_size:,} for {count:,} samples of {num_characters / max(1, count):.0f} characters "
            "on average"
        )
        return DataSettings({"task.size": vocab_size, **self.held_out_shares(count)}, reason)

    def corpus(self, recipe: Recipe, paths: Sequence[Path]) -> tuple[int, int]:
        """The numbers of samples that are not in a held-out file, and of their characters. UserError for data that
        cannot be read.
        """
        task = cast(ClassificationConfig, recipe.task)
        return _count_table(paths, task.columns, answer="label")

    def regularisation(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        rate = 0.0 if epochs < 3 else 0.1 if epochs < 10 else 0.2 if epochs < 40 else 0.3
        smoothing = {"task.smoothing": 0.1} if epochs >= 10 and isinstance(recipe.task, ClassificationConfig) else {}
        return {"model.dropout": rate, **smoothing}


@dataclass(frozen=True)
class TaggingScale(LabelledScale):
    """A target is one tagged word."""

    law: ScalingLaw = field(default_factory=lambda: ScalingLaw(0.0, 17.0, 0.34, 30.0, 0.34, 25.0, 40.0))
    noise_scale: float = 2.0
    unit: str = "word"
    max_tuning_batch: int = 16

    def tuning_settings(self, recipe: Recipe) -> Settings:
        """The learning rate is for batches of 16 sentences: half of that for 64 samples, by the square root rule
        (Malladi et al. 2022). The embedding table, which is over half of a small encoder, is frozen: rows for rare
        words would hardly train, and an epoch takes a quarter less time.
        """
        if recipe.adapter is not None:
            return {}
        return {"optim.lr": 0.5 * recipe.optim.lr, "train.frozen": ["embed"]}

    def corpus(self, recipe: Recipe, paths: Sequence[Path]) -> tuple[int, int]:
        text = read_conll(paths)
        sentences = [
            sentence for sentence, split in zip(text.sentences, text.named_splits) if split <= split_code("train")
        ]
        return len(sentences), sum(len(word) + 1 for sentence in sentences for word in sentence.words)

    def unique_targets(self, task: Task) -> int:
        tagged = cast(TaggedSentences, cast(Task, task).examples)
        return int((tagged.positions[tagged.splits.rows("train")] >= 0).sum())


@dataclass(frozen=True)
class EmbeddingScale(LabelledScale):
    """A target is a text with its partner. The batch also provides the negatives, so it is not made smaller than
    necessary.
    """

    batch_setting: str = "train.batch_size"
    min_batch: int = 2
    max_batch: int = 512
    noise_scale: float = 8.0
    unit: str = "pair"

    def data_settings(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
        base = super().data_settings(recipe, paths, minutes)
        count, _ = self.corpus(recipe, paths)
        num_train = count * (1 - sum(self.held_out_shares(count).values()))
        return DataSettings(
            {**base.settings, "train.batch_size": max(2, min(_DEFAULT_PAIRS, int(num_train / 2)))}, base.reason
        )

    def corpus(self, recipe: Recipe, paths: Sequence[Path]) -> tuple[int, int]:
        task = cast(EmbeddingConfig, recipe.task)
        return _count_table(paths, {"text": task.text, "text2": task.text2, "label": task.label}, ("text2", "label"))


def _count_table(
    paths: Sequence[Path], names: dict[str, str], optional: Sequence[str] = (), answer: str | None = None
) -> tuple[int, int]:
    table = read_table(paths, names, optional, target=answer)
    texts = [table.columns[role] for role in ("text", "text2") if role in table.columns]
    rows = [row for row, split in enumerate(table.named_splits) if split <= split_code("train")]
    return len(rows), sum(len(column[row]) for column in texts for row in rows)


SCALES = {
    "classification": LabelledScale(),
    "pairs": LabelledScale(),
    "tagging": TaggingScale(),
    "embedding": EmbeddingScale(),
}
