"""Settings of tasks on pairs, and their tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from headway.codecs import Codec, Kind, load_codec, sentence_codec
from headway.codecs.tokenizer import FILE
from headway.config import override, register
from headway.data import SplitConfig, split_pairs
from headway.data.content_hash import Encoder
from headway.errors import ConfigError, UserError
from headway.generate.search import check_beam
from headway.learn import Recipe, Task, TaskConfig
from headway.nn.models import EncoderDecoderConfig, ModelConfig

BOS, EOS = "<s>", "</s>"
_SOURCE = "source"  # folder of the source's codec, if separate


class Codecs(NamedTuple):
    """The source and target codecs, the same object if the vocabulary is shared. The target codec has bos and eos."""

    source: Codec
    target: Codec

    def save(self, directory: Path) -> None:
        self.target.save(directory)
        if self.source is not self.target:
            self.source.save(directory / _SOURCE)


class PairSpecialTokens(NamedTuple):
    """Special tokens around sequences: `bos` starts a target, `eos` ends it, `source_eos` ends a source."""

    bos: int
    eos: int
    source_eos: int

    @staticmethod
    def of(codecs: Codecs) -> PairSpecialTokens:
        """Raises UserError if a codec lacks them."""
        ids = (codecs.target.bos_id, codecs.target.eos_id, codecs.source.eos_id)
        if None in ids:
            raise UserError(f"the tokenizer has no bos or eos token; train one with {BOS} and {EOS}")
        return PairSpecialTokens(*ids)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PairsConfig(TaskConfig):
    """Predict the target of each pair from its source.

    `smoothing` is label smoothing (Szegedy et al. 2016). Training pairs with more than `max_length` source or target
    tokens are skipped and counted; without `max_length`, a pair that does not fit into the model or a batch is an
    error. `beam` and `length_penalty` (Wu et al. 2016) apply to the test split; other splits are decoded greedily.
    `reverse_source` feeds the source tokens in reverse order, in training and inference (Sutskever et al. 2014, section
    3.3); the eos token and the padding still follow them.
    """

    smoothing: float = 0.1
    max_length: int | None = None  # maximum source and target tokens of a training pair; none: no limit
    beam: int = 5  # beam size on the test split; 1 is greedy
    length_penalty: float = 0.6  # length penalty of the beam search
    reverse_source: bool = False
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a fraction of at least 0 and below 1")
        check_beam("task.beam", self.beam)
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"task.max_length is {self.max_length}; choose 1 or more")

    def prepare(self, source: str) -> str:
        """Prepare a source for its codec."""
        return source

    def source_encoder(self, codec: Codec) -> Encoder:
        """The encoder for source files, given the source codec."""
        return codec

    def encoder_order(self, source: Sequence[int]) -> list[int]:
        """Source ids without eos, in the order of the encoder's input. Its own inverse."""
        return list(source[::-1] if self.reverse_source else source)

    def codecs(self, directory: Path) -> Codecs:
        """The codecs saved next to a model."""
        target = load_codec(directory)
        folder = directory / _SOURCE
        return Codecs(load_codec(folder) if folder.is_dir() else target, target)

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        """Codecs trained on the training split."""
        raise NotImplementedError

    def saved_or_trained(self, paths: Sequence[Path], workspace: Path) -> Codecs:
        return self.codecs(workspace) if (workspace / FILE).exists() else self.train_codecs(paths)


@register("translation")
@dataclass(frozen=True)
class TranslationConfig(PairsConfig):
    """Translate sentences.

    `codec` and `size` set the tokenizer and its maximum vocabulary size (none: no limit), and `shared` whether both
    languages share one vocabulary. `reverse` translates from the second language to the first. `grouped` scores each
    source once, against all its translations. `lowercase_bleu` adds BLEU on lower-cased text (as `bleu_lowercase`),
    which many papers report. `goal` picks the best model.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 8000  # maximum vocabulary size; none: no limit
    shared: bool = True  # one vocabulary for both languages
    lowercase: bool = False  # whether to lower-case the text
    reverse: bool = False
    grouped: bool = False
    lowercase_bleu: bool = False
    goal: Literal["bleu", "chrf", "loss"] = "bleu"

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        from headway.domains.translation.task import ParallelText, TargetText

        check_recipe(recipe, self.shared)
        paths = recipe.files(data)
        codecs = self.saved_or_trained(paths, workspace)
        examples = ParallelText(self, recipe, paths, codecs, reverse=self.reverse, grouped=self.grouped)
        return Task(examples, TargetText(self.goal, self, self.lowercase_bleu))

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        if self.shared:
            codec = self._train(text for pair in split_pairs(paths, "train", self.split) for text in pair)
            return Codecs(codec, codec)
        codecs = [
            self._train(pair[column] for pair in split_pairs(paths, "train", self.split))
            for column in ((1, 0) if self.reverse else (0, 1))
        ]
        return Codecs(*codecs)

    def _train(self, strings: Iterator[str]) -> Codec:
        return sentence_codec(self.codec, strings, self.size, (BOS, EOS), self.lowercase)


def check_recipe(recipe: Recipe, shared: bool) -> None:
    """Raises ConfigError for a model or batches that do not support pairs."""
    model, train = recipe.model, recipe.train
    if not isinstance(model, EncoderDecoderConfig):
        raise ConfigError(
            f"pairs need an encoder_decoder, but the model is a {type(model).__name__}; choose another model"
        )
    if model.tie in ("all", "embeddings") and not shared:
        raise ConfigError(
            f"model.tie {model.tie} needs one vocabulary; set task.shared to true or model.tie to head or none"
        )
    if train.batch_size is not None or train.batch_tokens is None:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and train.batch_tokens {train.batch_tokens}; batches of pairs are "
            "counted in tokens, so set only train.batch_tokens"
        )


def with_vocab_sizes(model: ModelConfig, codecs: Codecs) -> ModelConfig:
    """`model` with the codecs' vocabulary sizes."""
    if codecs.source is codecs.target or not isinstance(model, EncoderDecoderConfig):
        return override(model, {"vocab_size": codecs.target.vocab_size})
    encoder = replace(model.encoder, vocab_size=codecs.source.vocab_size)
    return replace(model, encoder=encoder, decoder=replace(model.decoder, vocab_size=codecs.target.vocab_size))
