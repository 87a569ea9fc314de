"""What a text codec promises: text <-> symbol ids, and text that appears while ids still arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["word", "byte", "char", "bpe", "wordpiece", "unigram"]  # of a tokenizer that is trained


class StreamDecoder(Protocol):
    """Text of ids that arrive one by one: all that comes out, joined, is what `Codec.decode` gives."""

    def push(self, symbol: int) -> str:
        """The text that `symbol` completes: never half a character, and empty while one is incomplete."""
        ...

    def flush(self) -> str:
        """What is still held back, an incomplete character as U+FFFD; the decoder then starts afresh."""
        ...


class Codec(Protocol):
    """Text <-> symbol ids. There is no padding symbol: a Layout says where padding is."""

    size: int  # ids are below it
    begin: int | None  # put before a text
    end: int | None  # put after a text
    unknown: int | None  # stands for what has no symbol; None where everything has

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. No begin or end is added, and text that spells a special symbol stays text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Detokenised text. Special symbols are skipped; an unknown symbol stays visible."""
        ...

    def sections(self, text: str) -> Iterator[str]:
        """A long text in pieces: their ids, one after the other, are the ids of the whole."""
        ...

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        ...

    def save(self, path: Path) -> None:
        """Write tokenizer.json in the folder `path`, or `path` itself where it ends in .json.

        The file is written beside and renamed, so that it is never there in part.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of all that decides the ids, as a key for caches."""
        ...
