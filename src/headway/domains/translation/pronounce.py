"""How words are said: from letters to phonemes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.codecs import Codec, train_codec
from headway.config import register
from headway.data import Pair, PairCache, open_pairs, split_pairs
from headway.domains.translation.config import BEGIN, END, Codecs, PairsConfig, check_recipe
from headway.domains.translation.task import PairTask
from headway.metrics import pronunciation_error_rates
from headway.train import Recipe


@register("pronounce")
@dataclass(frozen=True)
class PronounceConfig(PairsConfig):
    """Pronounce words. Data are pronouncing dictionaries (.dict) or pairs of a word and its phonemes.

    Letters and phonemes are symbols of one vocabulary. Every pronunciation of a word is trained on and counts as right;
    words, not pronunciations, are held out.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Pronounce:
        """Raises UserError for data that cannot be read or do not fit the settings."""
        check_recipe(recipe, shared=True)
        paths = recipe.files(data)
        return Pronounce(self, recipe, paths, self.saved_or_trained(paths, workspace))

    def prepare(self, source: str) -> str:
        """A word as letters between spaces; capitals are read as small letters, which dictionaries have."""
        return " ".join(source.strip().lower())

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        texts = self._spelt(split_pairs(paths, "train", self.split))
        codec = train_codec("word", texts, split="space", special=(BEGIN, END))
        return Codecs(codec, codec)

    def _spelt(self, pairs: Iterable[Pair]) -> Iterable[str]:
        return (text for word, sounds in pairs for text in (self.prepare(word), sounds))


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


class Pronounce(PairTask):
    """The task over words and their phonemes."""

    goal = "per"
    groups = True

    def __init__(self, config: PronounceConfig, recipe: Recipe, paths: Sequence[Path], codecs: Codecs) -> None:
        self._spelling = Spelling(codecs.source, config)
        super().__init__(config, recipe, paths, codecs)

    def _open(self) -> PairCache:
        return open_pairs(self.paths, self._spelling, self.codecs.target)

    def scores(self, outputs: list[str], references: list[list[str]]) -> dict[str, Any]:
        """Word and phoneme error rates; the nearest of a word's pronunciations counts."""
        return pronunciation_error_rates(outputs, references)
