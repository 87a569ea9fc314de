"""Recipes for encoders, trained from scratch or fine-tuned with --from, and how training from scratch scales with data
and time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from headway.data import ClassSplitConfig, read_conll, read_table
from headway.data.prepared.shard_reader import PreparedData, is_prepared
from headway.data.splits import split_code
from headway.domains.understanding.classification import ClassificationConfig, TextPairsConfig
from headway.domains.understanding.reranking import RerankingConfig
from headway.domains.understanding.tagging import TaggedSentences, TaggingConfig
from headway.domains.understanding.task import (
    EmbeddingConfig,
    EncoderTaskConfig,
    PooledTaskConfig,
    check_encoder,
)
from headway.domains.understanding.unlabelled import read_unlabelled
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, Task, TaskConfig, TrainConfig
from headway.learn.plan.scale import (
    DataSettings,
    Scale,
    ScalingLaw,
    Settings,
    held_out_shares,
    prepared_settings,
    vocabulary_settings,
)
from headway.learn.pretraining import Pretraining, labelled_settings
from headway.learn.recipe import batch_size_of, generic
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


def reranking() -> Recipe:
    """Your own queries with documents."""
    description = (
        "queries with documents: .csv, .tsv or .jsonl with query, document and label, or query, positive, negative"
    )
    return _encoder_recipe("reranking", description, RerankingConfig(), _TRAIN)


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


RECIPES = (classification, pairs, tagging, embedding, reranking, banking77)


_SHAPES = ((64, 1, 2), (96, 1, 3), (128, 1, 4), (128, 2, 4), (192, 2, 6), (256, 3, 8), (384, 4, 6), (512, 6, 8))
_VOCABULARIES = ((1e5, 1000), (2e6, 2000), (2e7, 4000), (2e8, 8000), (math.inf, 16000))  # (characters, tokens)
_DEFAULT_PAIRS = 64  # pairs per embedding batch until its size is chosen

_LAW = ScalingLaw(floor=0.0, size=12.0, alpha=0.34, data=7.4, beta=0.34, repeats=25.0, excess=40.0)
"""The scaling law for text labels, fitted to 16 runs on four sets (benchmarks/laws.py). A model needs fewer texts than
it would need tokens, and with dropout repeated epochs help longer.
"""


def _labelled_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    if is_prepared(paths[0]):
        return prepared_settings(PreparedData(paths[0]).index)
    counts = _count_table(paths, cast(ClassificationConfig, recipe.task).columns, answer="label")
    return vocabulary_settings(_VOCABULARIES, *counts, "samples")


def _tagging_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    text, last = read_conll(paths), split_code("train")
    sentences = [sentence for sentence, split in zip(text.sentences, text.named_splits) if split <= last]
    num_characters = sum(len(word) + 1 for sentence in sentences for word in sentence.words)
    return vocabulary_settings(_VOCABULARIES, len(sentences), num_characters, "samples")


def _embedding_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    task = cast(EmbeddingConfig, recipe.task)
    columns = {"text": task.text, "text2": task.text2, "label": task.label}
    count, num_characters = _count_table(paths, columns, ("text2", "label"))
    num_train = count * (1 - sum(held_out_shares(count).values()))
    settings, reason = vocabulary_settings(_VOCABULARIES, count, num_characters, "samples")
    return DataSettings({**settings, "train.batch_size": max(2, min(_DEFAULT_PAIRS, int(num_train / 2)))}, reason)


def _reranking_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    table = cast(RerankingConfig, recipe.task).read(paths).table
    rows = np.flatnonzero(table.named_splits <= split_code("train")).tolist()
    num_characters = sum(len(column[row]) for column in table.columns.values() for row in rows)
    return vocabulary_settings(_VOCABULARIES, len(rows), num_characters, "samples")


def _count_table(
    paths: Sequence[Path], names: dict[str, str], optional: Sequence[str] = (), answer: str | None = None
) -> tuple[int, int]:
    """The numbers of samples that are not in a held-out file, and of their characters. UserError for data that cannot
    be read.
    """
    table = read_table(paths, names, optional, target=answer)
    texts = [table.columns[role] for role in ("text", "text2") if role in table.columns]
    rows = [row for row, split in enumerate(table.named_splits) if split <= split_code("train")]
    return len(rows), sum(len(column[row]) for column in texts for row in rows)


def _ngrams(recipe: Recipe) -> Settings:
    """N-grams for classes of single texts, which few minutes teach no model as well."""
    return {"task.ngrams": True} if type(recipe.task) is ClassificationConfig else {}


def _regularisation(recipe: Recipe, epochs: float) -> Settings:
    """Label smoothing for many epochs, and n-grams."""
    smoothing = {"task.smoothing": 0.1} if epochs >= 10 and isinstance(recipe.task, ClassificationConfig) else {}
    return {**smoothing, **_ngrams(recipe)}


def _tagged_words(task: Task) -> int:
    tagged = cast(TaggedSentences, task.examples)
    return int((tagged.positions[tagged.splits.rows("train")] >= 0).sum())


def _tagging_tuning(recipe: Recipe) -> Settings:
    """The learning rate is for batches of 16 sentences: half of that for 64 samples, by the square root rule
    (Malladi et al. 2022). The embedding table, which is over half of a small encoder, is frozen: rows for rare
    words would hardly train, and an epoch takes a quarter less time.
    """
    return {} if recipe.adapter is not None else {"optim.lr": 0.5 * recipe.optim.lr, "train.frozen": ["embed"]}


_TEXTS = Scale(  # small encoders; a target is one text
    law=_LAW,
    max_batch=32768,
    noise_scale=0.5,
    calibrated=True,
    shapes=_SHAPES,
    dropout=((3, 0.0), (10, 0.1), (40, 0.2), (math.inf, 0.3)),
    data_settings=_labelled_settings,
    regularisation=_regularisation,
)
SCALES = {
    "classification": _TEXTS,
    "pairs": _TEXTS,
    "tagging": replace(
        _TEXTS,
        law=ScalingLaw(0.0, 17.0, 0.34, 30.0, 0.34, 25.0, 40.0),
        noise_scale=2.0,
        max_tuning_batch=16,
        unique_targets=_tagged_words,
        data_settings=_tagging_settings,
        tuning_settings=_tagging_tuning,
    ),
    "reranking": replace(_TEXTS, data_settings=_reranking_settings),
    # A target is a text with its partner. The batch also provides the negatives, so it is not made smaller than
    # necessary.
    "embedding": replace(
        _TEXTS,
        batch_setting="train.batch_size",
        min_batch=2,
        max_batch=512,
        noise_scale=8.0,
        data_settings=_embedding_settings,
    ),
}


_CONTRASTED = 4096  # tokens per batch of a first stage with a contrast of texts


def _first_stage(recipe: Recipe) -> str:
    """A causal model predicts next tokens (Radford et al. 2018), any other masked tokens (Devlin et al. 2019)."""
    return "text" if check_encoder(recipe.model).stack.causal else "masked"


def _first_stage_settings(recipe: Recipe) -> Settings:
    """Texts of any length fit the model if its positions are relative. A text is contrasted with all others of its
    batch, which therefore is a large one.
    """
    task, context = cast(EncoderTaskConfig, recipe.task), recipe.model.context
    settings: Settings = {"task.context": min(128, context or 128), "task.split": {"validation": 0.05, "test": 0.0}}
    if getattr(check_encoder(recipe.model).embed, "positions", None) is None:
        settings["model.context"] = None
    if _first_stage(recipe) == "text":
        return settings
    contrast = 0.0 if isinstance(task, TaggingConfig) else 0.3  # tags need the vectors of words, not of texts
    batch = {"train.batch_tokens": _CONTRASTED} if contrast else {}
    return {**settings, "task.lowercase": task.lowercase, "task.masking.rate": 0.3, "task.contrast": contrast, **batch}


def _tuning(recipe: Recipe) -> Settings:
    """The mean of all tokens, because masked tokens do not train the first one to represent the text; for GPT, the
    auxiliary loss with the weight of the paper; for few related texts, a batch that they fill. Held-out shares are
    those of a run from scratch.
    """
    task = recipe.task
    settings = {name: share for name, share in labelled_settings(recipe, SCALES).items() if "split" in name}
    if isinstance(task, EmbeddingConfig):
        size = _embedding_settings(recipe, [Path(path) for path in recipe.data], 1.0).settings["train.batch_size"]
        return {**settings, "train.batch_size": size} if size < batch_size_of(recipe) else settings
    if _first_stage(recipe) == "text":
        return {**settings, "task.language_weight": 0.5} if isinstance(task, ClassificationConfig) else settings
    return {**settings, "task.pool": "mean", **_ngrams(recipe)} if isinstance(task, PooledTaskConfig) else settings


PRETRAINING = dict.fromkeys(
    ("classification", "pairs", "tagging", "embedding", "reranking", "banking77"),
    Pretraining(_first_stage, _first_stage_settings, _tuning, read_unlabelled),
)
