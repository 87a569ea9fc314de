"""Encoder inputs: codec and tokens, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headway.codecs import FILE, Codec, Kind, load_codec, sentence_codec
from headway.data import SplitConfig
from headway.errors import ConfigError
from headway.formats.out_of_distribution import TrainingStatistics
from headway.learn import Recipe, TaskConfig
from headway.learn.examples import IndexedExamples, LengthBatches
from headway.learn.token_rows import MAX_BATCH_TOKENS, LengthLimit, TokenRows
from headway.nn.models import ModelConfig, TransformerConfig

SPECIAL = ("[CLS]", "[SEP]")


@dataclass(frozen=True)
class EncoderTaskConfig(TaskConfig):
    """`codec`, `size` (maximum vocabulary size) and `lowercase` apply to the codec that is trained for a model from
    scratch.

    A text with more tokens than the model's context is an error or, with `truncate`, truncated. `split` sets the
    held-out shares if no files are named for the splits; equal texts are always in the same split.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 2000  # maximum vocabulary size
    lowercase: bool = True  # whether to lower-case the text
    truncate: bool = False  # whether to truncate texts that are too long
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out shares

    def limit(self, recipe: Recipe) -> LengthLimit:
        return LengthLimit(check_encoder(recipe.model).context, self.truncate)

    def codec_of(self, train_texts: Iterable[str], workspace: Path) -> Codec:
        """The codec of the run or its start model, otherwise one trained on the training texts."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        return sentence_codec(self.codec, train_texts, self.size, SPECIAL, self.lowercase)


def check_encoder(model: ModelConfig) -> TransformerConfig:
    """Raises ConfigError for a model that is not a Transformer."""
    if not isinstance(model, TransformerConfig):
        raise ConfigError(
            f"this task needs a single-stream transformer, not a {type(model).__name__}; choose another model"
        )
    return model


def batch_tokens(recipe: Recipe) -> int:
    """The batch size in tokens. Raises ConfigError if it is set in another unit."""
    train = recipe.train
    if train.batch_size is not None or train.batch_tokens is None:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and train.batch_tokens {train.batch_tokens}; batches in this task "
            "are counted in tokens, so set only train.batch_tokens"
        )
    return train.batch_tokens


class EncodedTextDataset(IndexedExamples):
    """Token rows with one text or text pair each. `batch_size` is in tokens."""

    codec: Codec
    rows: TokenRows

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. UserError for a split without samples."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        return replace(check_encoder(model), vocab_size=self.codec.vocab_size)

    def training_order(self, rows: np.ndarray) -> LengthBatches:
        return LengthBatches(self.rows.plan(rows, self.batch_size, self.seed), len(rows))

    def evaluation_order(self, rows: np.ndarray) -> LengthBatches:
        return LengthBatches(self.rows.plan(rows, MAX_BATCH_TOKENS), len(rows))

    def input_statistics(self) -> TrainingStatistics:
        """Token statistics of the training texts. Longer texts are not unexpected for a classifier."""
        is_train = np.zeros(len(self.rows), bool)
        is_train[self.splits.indices["train"]] = True
        return TrainingStatistics.from_ids(self.rows.ids[np.repeat(is_train, self.rows.lengths)], self.codec.vocab_size)

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.codec.save(directory)
