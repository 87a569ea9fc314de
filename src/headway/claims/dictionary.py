"""The pronouncing dictionary in other forms: its phonemes backwards, and lists of several words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from headway.data import Pair, SplitConfig, find_set, grouped, pairs, split_pairs

NAME = "cmudict"
BETWEEN = "_"  # stands between the words of a list, on both sides


def write_backwards(directory: Path) -> list[Path]:
    """All words, each with its phonemes from the last to the first."""
    found = (Pair(word, " ".join(reversed(sounds.split()))) for word, sounds in pairs(find_set(NAME)))
    return [_write(directory / "backwards.tsv", found)]


def write_lists(directory: Path, most: int, trained: int, judged: int, last_only: bool) -> list[Path]:
    """Lists of 1 to `most` words to be pronounced, or only their last word: of each length `trained` lists for training
    and `judged` for validation.

    They are the same each time. Words of validation are in no list of training.
    """
    found = []
    for side, count in (("train", trained), ("validation", judged)):
        draw, words = Random(side), _words(side)
        chosen = (draw.sample(words, length) for _ in range(count) for length in range(1, most + 1))
        found.append(_write(directory / f"{side}.tsv", (_joined(some, last_only) for some in chosen)))
    return found


def words_of(source: str) -> int:
    """How many words a list has."""
    return source.count(BETWEEN) + 1


def _words(side: str) -> list[Pair]:
    """Words of letters alone, each with the first of its pronunciations."""
    known = grouped(split_pairs(find_set(NAME), side, SplitConfig()))
    return [Pair(word, sounds[0]) for word, sounds in known.items() if word.isalpha()]


def _joined(words: list[Pair], last_only: bool) -> Pair:
    source = BETWEEN.join(word.source for word in words)
    return Pair(source, words[-1].target if last_only else f" {BETWEEN} ".join(word.target for word in words))


def _write(path: Path, found: Iterable[Pair]) -> Path:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in found), encoding="utf-8")
    return path
