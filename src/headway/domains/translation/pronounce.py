"""How words are said: from letters to phonemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.codecs import Codec, train_codec
from headway.config import register
from headway.data import split_pairs
from headway.domains.translation.config import BEGIN, END, Codecs, PairsConfig, check_recipe
from headway.domains.translation.task import ParallelText, TargetText
from headway.learn import Recipe, Task
from headway.learn.objectives.written import Ids, Sources
from headway.metrics import pronunciation_error_rates


@register("pronounce")
@dataclass(frozen=True)
class PronounceConfig(PairsConfig):
    """Pronounce words. Data are pronouncing dictionaries (.dict) or pairs of a word and its phonemes.

    Letters and phonemes are symbols of one vocabulary. Every pronunciation of a word is trained on and counts as right;
    words, not pronunciations, are held out.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read or do not fit the settings."""
        check_recipe(recipe, shared=True)
        paths = recipe.files(data)
        examples = ParallelText(self, recipe, paths, self.saved_or_trained(paths, workspace), grouped=True)
        return Task(examples, Pronounced("per", self))

    def prepare(self, source: str) -> str:
        """A word as letters between spaces; capitals are read as small letters, which dictionaries have."""
        return " ".join(source.strip().lower())

    def reading(self, codec: Codec) -> Spelling:
        return Spelling(codec, self)

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        pairs = split_pairs(paths, "train", self.split)
        texts = (text for word, sounds in pairs for text in (self.prepare(word), sounds))
        codec = train_codec("word", texts, split="space", special=(BEGIN, END))
        return Codecs(codec, codec)


class Spelling:
    """The source's side of a codec, for a cache: words are spelt before they are encoded."""

    def __init__(self, codec: Codec, config: PronounceConfig) -> None:
        self._codec = codec
        self._config = config
        self.size, self.begin, self.end = codec.size, codec.begin, codec.end

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._codec.encode_batch([self._config.prepare(text) for text in texts])

    def fingerprint(self) -> str:
        return f"letters of {self._codec.fingerprint()}"


class Pronounced(TargetText):
    """The phonemes of a word, by word and phoneme error rates; the nearest of a word's pronunciations counts."""

    def scores(self, examples: ParallelText, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        return pronunciation_error_rates(examples.texts(written), sources.references)
