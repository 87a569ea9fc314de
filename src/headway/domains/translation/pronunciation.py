"""The pronunciation of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from headway.codecs import Codec, train_codec
from headway.config_kinds import register
from headway.data.prepared.shard_reader import is_prepared
from headway.data.token_store import Encoder
from headway.domains.translation.pair_shards import open_prepared
from headway.domains.translation.task import (
    BOS,
    EOS,
    PairsConfig,
    ParallelText,
    PreparedEncoder,
    TargetText,
    check_recipe,
)
from headway.learn import Recipe, Task
from headway.learn.objectives.sequences import Ids, Sources
from headway.metrics import pronunciation_error_rates


@register("pronounce")
@dataclass(frozen=True)
class PronounceConfig(PairsConfig):
    """Pronounce words. The data are pronouncing dictionaries (.dict) or pairs of a word and its phonemes.

    Letters and phonemes share one vocabulary. All pronunciations of a word are used in training and count as correct;
    words, not pronunciations, are held out.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("pronunciations",)

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read or do not fit the settings."""
        check_recipe(recipe, shared=True)
        paths = recipe.files(data)
        if any(map(is_prepared, paths)):
            examples = open_prepared(self, recipe, paths, workspace, shared=True, grouped=True)
        else:
            examples = ParallelText(self, recipe, paths, self.saved_or_trained(paths, workspace), grouped=True)
        return Task(examples, Pronunciation("per", self))

    def prepare(self, source: str) -> str:
        """A word as lower-case letters separated by spaces."""
        return " ".join(source.strip().lower())

    def source_encoder(self, codec: Codec) -> Encoder:
        return PreparedEncoder(codec, self.prepare, "letters")

    def training_texts(self, pair: Sequence[str]) -> Sequence[str]:
        word, sounds = pair
        return self.prepare(word), sounds

    def train_codec(self, texts: Iterable[str]) -> Codec:
        return train_codec("word", texts, split="space", special=(BOS, EOS))


class Pronunciation(TargetText):
    """Phonemes of words, scored by word and phoneme error rates against the nearest pronunciation."""

    def scores(self, examples: ParallelText, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        return pronunciation_error_rates(examples.decode_all(generated), sources.references)
