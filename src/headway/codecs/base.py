"""What a text codec promises: text <-> symbol ids, and text that appears while ids still arrive."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tokenizers import Tokenizer

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


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


def _byte_table() -> dict[str, int]:
    """The stand-ins of byte-level tokenizers: visible Latin-1 for itself, the rest from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{chr(b): b for b in visible}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


BYTES = _byte_table()


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that decoding skips."""
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokenizer's decoder as its JSON steps; empty where tokens are joined with spaces."""
    if tokenizer.decoder is None:
        return []
    state = json.loads(tokenizer.decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


class ByteStream:
    """For byte-level tokenizers: an incremental UTF-8 decoder, which is exact for invalid bytes too.

    With `line_space`, one space at the start of each line is the tokenizer's own and is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, line_space: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._line_space = line_space
        self._restart()

    def _restart(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_line_start = True

    def push(self, symbol: int) -> str:
        token = self._tokenizer.id_to_token(symbol)
        if token is None or symbol in self._special:
            return ""
        known = all(character in BYTES for character in token)
        piece = bytes(BYTES[character] for character in token) if known else token.encode()
        return self._without_line_space(self._characters.decode(piece))

    def flush(self) -> str:
        text = self._without_line_space(self._characters.decode(b"", final=True))
        self._restart()
        return text

    def _without_line_space(self, text: str) -> str:
        if not self._line_space or not text:
            return text
        kept = text.removeprefix(" ") if self._at_line_start else text
        self._at_line_start = text.endswith("\n")
        return kept.replace("\n ", "\n")


class WindowStream:
    """For all others: the text of a token may depend on the tokens beside it, so a short window is decoded.

    The window is what was printed last and what came since.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._printed: list[int] = []
        self._waiting: list[int] = []

    def push(self, symbol: int) -> str:
        if symbol in self._special:
            return ""
        self._waiting.append(symbol)
        before = self._tokenizer.decode(self._printed, skip_special_tokens=True)
        after = self._tokenizer.decode(self._printed + self._waiting, skip_special_tokens=True)
        text = after[len(before) :]
        if text:
            self.go_on_after(self._waiting)
        return text

    def go_on_after(self, printed: list[int]) -> None:
        """What is pushed next follows `printed`."""
        self._printed, self._waiting = printed, []

    def flush(self) -> str:
        self.go_on_after([])
        return ""


class FallbackStream:
    """For tokenizers whose tokens <0x00> to <0xFF> spell the characters that have no token.

    Of a run that holds an invalid byte, `decode` replaces all, characters too; a stream cannot know that in advance
    and replaces only what is invalid.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window = WindowStream(tokenizer)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, symbol: int) -> str:
        byte = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(symbol) or "")
        if byte is not None:
            self._window.go_on_after([symbol])
            return self._characters.decode(bytes.fromhex(byte[1]))
        text = self._window.push(symbol)
        return self._characters.decode(b"", final=True) + text if text else ""

    def flush(self) -> str:
        return self._characters.decode(b"", final=True) + self._window.flush()
