"""Symbols of text that is already cut into words, and which symbol is the first of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headway.codecs.tokenizer import TokenizerCodec


class Pieces(NamedTuple):
    """The ids of a sentence; `first` is the place of each word's first symbol, None of a word that has none."""

    ids: list[int]
    first: list[int | None]


def word_pieces(codec: TokenizerCodec, sentences: Sequence[Sequence[str]]) -> list[Pieces]:
    """The symbols of each sentence, its words joined by spaces: as the tokenizer would see it anywhere else."""
    texts = [" ".join(words) for words in sentences]
    encoded = codec.tokenizer.encode_batch(texts, add_special_tokens=False)
    return [Pieces(one.ids, _firsts(words, one.offsets)) for words, one in zip(sentences, encoded)]


def _firsts(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Where each word's first symbol is; a symbol belongs to the word in which it ends."""
    firsts: list[int | None] = []
    place, start = 0, 0
    for word in words:
        stop = start + len(word)
        while place < len(offsets) and offsets[place][1] <= start:
            place += 1
        inside = place < len(offsets) and offsets[place][0] < stop
        firsts.append(place if inside else None)
        start = stop + 1
    return firsts
