"""Translation, and other pairs of texts such as documents with summaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from headway.codecs import Codec, Kind, sentence_codec
from headway.config_kinds import register
from headway.data import split_pairs
from headway.data.prepared.shard_reader import is_prepared
from headway.domains.translation.pair_shards import open_prepared
from headway.domains.translation.task import BOS, EOS, Codecs, PairsConfig, ParallelText, TargetText, check_recipe
from headway.errors import ConfigError
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task


@register("translation")
@dataclass(frozen=True)
class TranslationConfig(PairsConfig):
    """Translate sentences.

    `codec` and `size` set the tokenizer and its maximum vocabulary size (none: no limit), and `shared` whether both
    languages share one vocabulary. `reverse` translates from the second language to the first. `grouped` scores each
    source once, against all its translations. `lowercase_bleu` adds BLEU on lower-cased text (as `bleu_lowercase`),
    which many papers report. `goal` picks the best model; with rougeL, texts are scored as summaries.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("translations",)

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 8000  # maximum vocabulary size; none: no limit
    shared: bool = True  # one vocabulary for both languages
    lowercase: bool = False  # whether to lower-case the text
    reverse: bool = False
    grouped: bool = False
    lowercase_bleu: bool = False
    goal: Literal["bleu", "chrf", "rougeL", "loss"] = "bleu"

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        check_recipe(recipe, self.shared)
        paths, usage = recipe.files(data), read_usage(workspace)
        if any(map(is_prepared, paths)):
            if self.reverse:
                raise ConfigError(
                    f"task.reverse does not apply to {paths[0]}, whose splits are those of the first texts; prepare "
                    "the files in the other order"
                )
            examples = open_prepared(self, recipe, paths, workspace, self.shared, self.grouped)
        else:
            codecs = self.saved_or_trained(paths, workspace)
            examples = ParallelText(self, recipe, paths, codecs, usage, reverse=self.reverse, grouped=self.grouped)
        return Task(examples, TargetText(self.goal, self, self.lowercase_bleu))

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        if self.shared:
            return super().train_codecs(paths)
        codecs = [
            self.train_codec(pair[column] for pair in split_pairs(paths, "train", self.split))
            for column in ((1, 0) if self.reverse else (0, 1))
        ]
        return Codecs(*codecs)

    def train_codec(self, texts: Iterable[str]) -> Codec:
        return sentence_codec(self.codec, texts, self.size, (BOS, EOS), self.lowercase)
