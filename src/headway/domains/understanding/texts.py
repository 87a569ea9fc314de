"""Texts as encoders read them: their codec and symbols, in batches of nearly equal lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headway.codecs import FILE, Codec, Kind, load_codec, sentence_codec
from headway.data import SplitConfig
from headway.errors import ConfigError
from headway.formats.familiar import Familiar
from headway.learn import Recipe, TaskConfig
from headway.learn.examples import ByTokens, Numbered
from headway.learn.rows import AT_ONCE, FramedRows, Limit
from headway.nn.models import ModelConfig, TransformerConfig

SPECIAL = ("[CLS]", "[SEP]")


@dataclass(frozen=True)
class EncoderTaskConfig(TaskConfig):
    """`codec`, `size` (the most symbols) and `lowercase` are for the codec that is trained where the model starts from
    scratch.

    A text of more tokens than the model reads is an error, or cut with `truncate`. `split` says what is held out where
    no file is named for it; equal texts are never on two sides.
    """

    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 2000  # most symbols
    lowercase: bool = True  # whether texts are lower-cased
    truncate: bool = False  # cut texts that are too long
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # what is held out

    def limit(self, recipe: Recipe) -> Limit:
        return Limit(check_encoder(recipe.model).context, self.truncate)

    def codec_of(self, texts: Iterable[str], workspace: Path) -> Codec:
        """The codec of the run or of the model it starts from; else one made of the texts that are trained on."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        return sentence_codec(self.codec, texts, self.size, SPECIAL, self.lowercase)


def check_encoder(model: ModelConfig) -> TransformerConfig:
    """Raises ConfigError for a model that is no Transformer."""
    if not isinstance(model, TransformerConfig):
        raise ConfigError(f"this task needs one stream, and the model is a {type(model).__name__}; start from another")
    return model


def batch_tokens(recipe: Recipe) -> int:
    """The size of a batch in tokens. Raises ConfigError where it is given in another way."""
    train = recipe.train
    if train.batch_size is not None or train.batch_tokens is None:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and train.batch_tokens {train.batch_tokens}; batches of this task "
            "are made by tokens: set train.batch_tokens alone"
        )
    return train.batch_tokens


class EncodedTexts(Numbered):
    """Rows of symbols, of a text each, or of two. `size` is that of a batch in tokens."""

    codec: Codec
    rows: FramedRows

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols. UserError for a split without samples."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        return replace(check_encoder(model), symbols=self.codec.size)

    def training(self, rows: np.ndarray) -> ByTokens:
        return ByTokens(self.rows.plan(rows, self.size, self.seed), len(rows))

    def judging(self, rows: np.ndarray) -> ByTokens:
        return ByTokens(self.rows.plan(rows, AT_ONCE), len(rows))

    def met(self) -> Familiar:
        """The symbols of the texts to train on. Longer texts than these are nothing strange to what says a label."""
        of_train = np.zeros(len(self.rows), bool)
        of_train[self.splits.sides["train"]] = True
        return Familiar.of(self.rows.ids[np.repeat(of_train, self.rows.lengths)], self.codec.size)

    def save(self, directory: Path) -> None:
        super().save(directory)
        self.codec.save(directory)
