"""The tokens of a codec as bytes, which llguidance needs of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Int
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.base import BYTES, decoder_steps, special_ids
from headway.codecs.tokenizer import LINE_SPACE_STEPS
from headway.errors import UserError

SPECIAL = b"\xff"  # before the name of a special token; this byte occurs in no text
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that occur in no text
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_ENDING = re.compile(rb"[,\]}\s]|^[tfn]")  # the first letter of a literal determines the rest
_NEEDED = {*range(256)} - _NEVER
_FORCED, _CUT = 256, 64  # characters of a forced text to tokenize, and the last of them, which the cut may change


class ByteSymbols:
    """A codec's tokens for llguidance, with the ids that may end a text.

    headway's own tokenizers drop a space at the start of each line; for all others `line_masks` is None. For those it
    has two bit masks of the tokens that add exactly their bytes, at the start of a line and within one; a line starts
    after the tokens `line_breaks`.
    """

    def __init__(self, codec: Codec, ends: tuple[int, ...]) -> None:
        """UserError for a codec whose texts are not the concatenated bytes of its tokens."""
        if not isinstance(codec, TokenizerCodec):
            raise UserError(
                f"a {type(codec).__name__} generates no text, so it supports no response format; use a text model"
            )
        tokens = _bytes_of(codec)
        strange = next((end for end in ends if not 0 <= end < len(tokens)), None)
        if strange is not None or not ends:
            told = "no end token" if strange is None else f"no token {strange} to end a text"
            raise UserError(f"the tokenizer has {told}, so no response format can be complete; pass a valid id")
        self.narrow: tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]] | None = None
        if decoder_steps(codec.tokenizer)[1:] == LINE_SPACE_STEPS:
            within = np.array([b"\n " not in token for token in tokens])
            self.narrow = _packed(within & [not token.startswith(b" ") for token in tokens]), _packed(within)
        self.breaks = frozenset(i for i, token in enumerate(tokens) if token.endswith(b"\n"))
        for end in ends:  # an end token is not part of the text
            tokens[end] = SPECIAL + tokens[end].removeprefix(SPECIAL)
        self.tokens = tokens
        self.count = len(tokens)
        self.words = -(-len(tokens) // 32)
        self.ends = ends
        self.tokenizer = LLTokenizer(_Wrapped(codec.tokenizer, tokens, ends[0]), eos_token=list(ends))  # type: ignore[arg-type]

    @cached_property
    def ending(self) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """Ids of the tokens that may end a JSON string, and of those that may end another value."""
        in_strings = [i for i, token in enumerate(self.tokens) if b'"' in token]
        outside = [i for i, token in enumerate(self.tokens) if _ENDING.search(token) or token.count(b'"') > 1]
        return np.array(in_strings, np.int64), np.array(outside, np.int64)


def _packed(marks: Bool[np.ndarray, "C"]) -> Int[np.ndarray, "W"]:
    """One bit per token, lowest first, in int32."""
    padded = np.zeros(-(-len(marks) // 32) * 32, bool)
    padded[: len(marks)] = marks
    return np.packbits(padded, bitorder="little").view(np.int32)


class _Wrapped:
    """The interface that llguidance expects of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self._tokenizer = tokenizer  # not the codec, which must not be kept alive
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token}

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text within another, as the codec would split it; forced text is tokenized this way.

        Only the first tokens of a long text: the rest is tokenized again after each of them.
        """
        if len(text) > _FORCED:
            return self._first(text)
        ids, written = self._tokenizer.encode(text, add_special_tokens=False).ids, text.encode()
        joined = b"".join(self.tokens[i] for i in ids)
        if joined == b" " + written:  # the space that is added at the start of a text
            rest = self.tokens[ids[0]][1:]
            return [*([self._ids[rest]] if rest in self._ids else self._each(rest)), *ids[1:]]
        return ids if joined == written else self._each(written)

    def _first(self, text: str) -> list[int]:
        ids, sure = self(text[:_FORCED]), len(text[: _FORCED - _CUT].encode())
        ends = accumulate(len(self.tokens[i]) for i in ids)
        return [i for i, end in zip(ids, ends) if end <= sure] or ids[:1]

    def _each(self, written: bytes) -> list[int]:
        return [self._ids[bytes([byte])] for byte in written]


def _bytes_of(codec: TokenizerCodec) -> list[bytes]:
    """The bytes of each token; empty for tokens without text, and with a prefix for special tokens."""
    steps = decoder_steps(codec.tokenizer)
    kinds = [step["type"] for step in steps]
    if kinds[:1] == ["ByteLevel"] and steps[1:] in ([], LINE_SPACE_STEPS):
        write = _byte_level
    elif kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        replaced = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
        replaced += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        if any(pattern is None for pattern, _ in replaced):
            raise _unknown(codec, kinds)
        write = _Pieces(replaced)
    else:
        raise _unknown(codec, kinds)
    special, tokens = special_ids(codec.tokenizer), []
    for i in range(codec.size):
        name = codec.tokenizer.id_to_token(i)
        if name is None or i == codec.unknown:
            tokens.append(b"")
        else:
            tokens.append(SPECIAL + name.encode() if i in special else write(name))
    missing = sorted(_NEEDED - {token[0] for token in tokens if len(token) == 1})
    if missing:
        shown = repr(chr(missing[0])) if missing[0] < 128 else f"the byte 0x{missing[0]:X}"
        raise UserError(
            f"the tokenizer has no token for {shown} ({len(missing)} bytes have none), so response formats cannot be "
            "enforced; use a model with a token for every byte"
        )
    return tokens


def _unknown(codec: TokenizerCodec, kinds: list[str]) -> UserError:
    model = type(codec.tokenizer.model).__name__
    how = f"is joined by {', '.join(kinds)}" if kinds else "is joined by spaces"
    return UserError(
        f"the text of this {model} tokenizer {how}, which response formats do not support; use a model with a "
        "byte-level tokenizer, or one of sentencepiece with byte fallback"
    )


def _byte_level(name: str) -> bytes:
    """The bytes of a token of a byte-level tokenizer."""
    known = all(character in BYTES for character in name)
    return bytes(BYTES[character] for character in name) if known else name.encode()


class _Pieces:
    """The bytes of a sentencepiece token."""

    def __init__(self, replaced: list[tuple[str, str]]) -> None:
        self._replaced = replaced

    def __call__(self, name: str) -> bytes:
        if _BYTE.fullmatch(name):
            return bytes.fromhex(name[3:5])
        for pattern, content in self._replaced:
            name = name.replace(pattern, content)
        return name.encode()


_known: WeakKeyDictionary[Codec, dict[tuple[int, ...], ByteSymbols]] = WeakKeyDictionary()
_lock = Lock()


def symbols_of(codec: Codec, ends: Iterable[int]) -> ByteSymbols:
    """The codec's tokens, made once: a large vocabulary takes about a second. Thread-safe."""
    wanted = tuple(sorted({*ends, *(() if codec.end is None else (codec.end,))}))
    with _lock:
        made = _known.setdefault(codec, {})
        if wanted not in made:
            made[wanted] = ByteSymbols(codec, wanted)
        return made[wanted]
