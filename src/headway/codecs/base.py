"""The interface of text codecs: text <-> token ids, and streaming decoders."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tokenizers import Tokenizer

Kind = Literal["word", "byte", "char", "bpe", "wordpiece", "unigram"]  # kinds of trainable tokenizers


class StreamDecoder(Protocol):
    """Decodes ids one by one; the concatenated output equals `Codec.decode`."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """The remaining text, with an incomplete character as U+FFFD; resets the decoder."""
        ...


class Codec(Protocol):
    """Text <-> token ids. There is no padding token: a Layout marks padding."""

    vocab_size: int  # all ids are smaller
    bos_id: int | None  # added before a text
    eos_id: int | None  # added after a text
    unk_id: int | None  # for text without a token; None if every text has tokens

    def encode(self, text: str) -> list[int]:
        """The ids for `text`, without begin and end tokens. Text that looks like a special token stays text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` each text, in parallel."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The detokenised text. Special tokens are skipped; the unknown token stays visible."""
        ...

    def sections(self, text: str) -> Iterator[str]:
        """Split a long text into sections whose concatenated ids equal the ids for the whole text."""
        ...

    def stream(self) -> StreamDecoder:
        """A decoder that takes ids one by one."""
        ...

    def save(self, path: Path) -> None:
        """Write tokenizer.json in the folder `path`, or `path` itself if it ends in .json.

        The file is written under a temporary name and then renamed, so it is never incomplete.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of everything that the ids depend on, for cache keys."""
        ...


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


def _byte_table() -> dict[str, int]:
    """The characters that represent bytes in byte-level tokenizers: visible Latin-1 characters as they are, the others
    from U+0100.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{chr(b): b for b in visible}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


BYTES = _byte_table()


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that decoding skips."""
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The JSON steps of the tokenizer's decoder; empty if tokens are joined with spaces."""
    if tokenizer.decoder is None:
        return []
    state = json.loads(tokenizer.decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


class ByteStream:
    """For byte-level tokenizers: an incremental UTF-8 decoder that is also exact for invalid bytes.

    With `line_space`, the tokenizer adds one space at the start of each line, which is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, line_space: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._line_space = line_space
        self._restart()

    def _restart(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_line_start = True

    def push(self, token: int) -> str:
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None or token in self._special:
            return ""
        known = all(character in BYTES for character in spelling)
        token_bytes = bytes(BYTES[character] for character in spelling) if known else spelling.encode()
        return self._without_line_space(self._characters.decode(token_bytes))

    def flush(self) -> str:
        text = self._without_line_space(self._characters.decode(b"", final=True))
        self._restart()
        return text

    def _without_line_space(self, text: str) -> str:
        if not self._line_space or not text:
            return text
        stripped = text.removeprefix(" ") if self._at_line_start else text
        self._at_line_start = text.endswith("\n")
        return stripped.replace("\n ", "\n")


class WindowStream:
    """For all other tokenizers: a token's text may depend on adjacent tokens, so a short window is decoded.

    The window contains the last tokens that were printed and those received since.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._printed: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        self._pending.append(token)
        printed_text = self._tokenizer.decode(self._printed, skip_special_tokens=True)
        full_text = self._tokenizer.decode(self._printed + self._pending, skip_special_tokens=True)
        text = full_text[len(printed_text) :]
        if text:
            self.continue_after(self._pending)
        return text

    def continue_after(self, printed: list[int]) -> None:
        """Continue after the tokens `printed`."""
        self._printed, self._pending = printed, []

    def flush(self) -> str:
        self.continue_after([])
        return ""


class FallbackStream:
    """For tokenizers whose tokens <0x00> to <0xFF> encode characters that have no token.

    If a run of bytes contains an invalid one, `decode` replaces the whole run. A stream cannot look ahead, so it
    replaces only the invalid bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window = WindowStream(tokenizer)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        byte = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or "")
        if byte is not None:
            self._window.continue_after([token])
            return self._characters.decode(bytes.fromhex(byte[1]))
        text = self._window.push(token)
        return self._characters.decode(b"", final=True) + text if text else ""

    def flush(self) -> str:
        return self._characters.decode(b"", final=True) + self._window.flush()
