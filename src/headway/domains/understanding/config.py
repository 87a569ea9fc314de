"""What the tasks on encoders share: the codec, the labels, the head, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from headway.codecs import FILE, Codec, Kind, load_codec, sentence_codec
from headway.config import override
from headway.data import SplitConfig
from headway.errors import ConfigError
from headway.models import ModelConfig, PooledHeadConfig, TransformerConfig
from headway.models.pooled import Pool
from headway.train import Recipe, TaskConfig
from headway.train.rows import Limit

SPECIAL = ("[CLS]", "[SEP]")
_POOLERS = ("classes", "pooled", "next")  # heads of a start model that pool as classes need it


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


def adapted(model: ModelConfig, codec: Codec, head: str, config: PooledHeadConfig) -> TransformerConfig:
    """`model` with the codec's symbols and this head alone."""
    encoder = check_encoder(model)
    return replace(override(encoder, {"symbols": codec.size}), heads={head: config})


def pooling_head(model: ModelConfig, outputs: int, pool: Pool | None, started: bool) -> PooledHeadConfig:
    """A head over whole texts. Without `pool`, a model that was started from keeps its pooler (BERT's), or gets one of
    BERT's kind; one from scratch takes the mean of its tokens; one that sees only earlier tokens, its last.
    """
    encoder = check_encoder(model)
    rate = getattr(encoder.embed, "dropout", 0.0)
    known = next((encoder.heads[name] for name in _POOLERS if name in encoder.heads), None)
    if pool is None and isinstance(known, PooledHeadConfig):
        return replace(known, outputs=outputs, dropout=known.dropout or rate)
    if pool is None and started and not encoder.stack.causal:
        return PooledHeadConfig(outputs, dense=True, activation="tanh", dropout=rate)
    plain: Pool = "last" if encoder.stack.causal else "mean"
    return PooledHeadConfig(outputs, pool=pool or plain, dropout=rate)
