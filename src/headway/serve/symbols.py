"""The symbols of a codec as the bytes that each writes: what llguidance needs to know of a tokenizer."""

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

SPECIAL = b"\xff"  # before what a special symbol is called; no text holds this byte
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that are in no text
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_ENDING = re.compile(rb"[,\]}\s]|^[tfn]")  # of a literal the first letter, as it can only go on
_NEEDED = {*range(256)} - _NEVER
_FORCED, _CUT = 256, 64  # characters of a forced text that are tokenized, and of these the last, which a cut may change


class ByteSymbols:
    """A codec's symbols for llguidance, with the ids that may end a text.

    Tokenizers that are trained here drop a space at the start of each line; of all others `narrow` is None. There it
    holds the symbols that write just their bytes at the start of a line and within one, as bits; `breaks` are those
    after which a line starts.
    """

    def __init__(self, codec: Codec, ends: tuple[int, ...]) -> None:
        """UserError for a codec whose texts are not its symbols' bytes, one after the other."""
        if not isinstance(codec, TokenizerCodec):
            raise UserError(
                f"a {type(codec).__name__} writes no text, so that it holds to no form; use a model of texts"
            )
        tokens = _bytes_of(codec)
        strange = next((end for end in ends if not 0 <= end < len(tokens)), None)
        if strange is not None or not ends:
            told = "no end symbol" if strange is None else f"no symbol {strange}, which is to end a text"
            raise UserError(f"the tokenizer has {told}, so that no form is ever complete; give the id of one")
        self.narrow: tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]] | None = None
        if decoder_steps(codec.tokenizer)[1:] == LINE_SPACE_STEPS:
            within = np.array([b"\n " not in token for token in tokens])
            self.narrow = _packed(within & [not token.startswith(b" ") for token in tokens]), _packed(within)
        self.breaks = frozenset(i for i, token in enumerate(tokens) if token.endswith(b"\n"))
        for end in ends:  # what ends a text is no part of it
            tokens[end] = SPECIAL + tokens[end].removeprefix(SPECIAL)
        self.tokens = tokens
        self.count = len(tokens)
        self.words = -(-len(tokens) // 32)
        self.ends = ends
        self.tokenizer = LLTokenizer(_Wrapped(codec.tokenizer, tokens, ends[0]), eos_token=list(ends))  # type: ignore[arg-type]

    @cached_property
    def ending(self) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """Ids of the symbols with which a JSON string may end, and of those with which another value may."""
        in_strings = [i for i, token in enumerate(self.tokens) if b'"' in token]
        outside = [i for i, token in enumerate(self.tokens) if _ENDING.search(token) or token.count(b'"') > 1]
        return np.array(in_strings, np.int64), np.array(outside, np.int64)


def _packed(marks: Bool[np.ndarray, "C"]) -> Int[np.ndarray, "W"]:
    """A bit for each symbol, the lowest first, in int32."""
    padded = np.zeros(-(-len(marks) // 32) * 32, bool)
    padded[: len(marks)] = marks
    return np.packbits(padded, bitorder="little").view(np.int32)


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self._tokenizer = tokenizer  # not its codec, which nothing here may keep alive
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token}

    def __call__(self, text: str) -> list[int]:
        """The symbols of a text amid another, as the codec would cut it; a form that leaves no choice is cut so.

        Of a long text only the first symbols: each of them has the rest tokenized again.
        """
        if len(text) > _FORCED:
            return self._first(text)
        ids, written = self._tokenizer.encode(text, add_special_tokens=False).ids, text.encode()
        joined = b"".join(self.tokens[i] for i in ids)
        if joined == b" " + written:  # what is put before the start of a text
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
    """The bytes that each symbol writes; empty for what writes none, and marked for special symbols."""
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
            f"the tokenizer has no symbol for {shown} ({len(missing)} bytes have none), so that forms cannot be held "
            "to; use a model with a symbol for every byte"
        )
    return tokens


def _unknown(codec: TokenizerCodec, kinds: list[str]) -> UserError:
    model = type(codec.tokenizer.model).__name__
    how = f"is joined by {', '.join(kinds)}" if kinds else "is joined by spaces"
    return UserError(
        f"the text of this {model} tokenizer {how}, which forms are not known for; use a model with a byte-level "
        "tokenizer, or one of sentencepiece with bytes"
    )


def _byte_level(name: str) -> bytes:
    """As `ByteStream` writes it."""
    known = all(character in BYTES for character in name)
    return bytes(BYTES[character] for character in name) if known else name.encode()


class _Pieces:
    """As tokenizers of sentencepiece write a piece."""

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
    """The codec's symbols, which are made once: that takes about a second where they are many. Any thread may ask."""
    wanted = tuple(sorted({*ends, *(() if codec.end is None else (codec.end,))}))
    with _lock:
        made = _known.setdefault(codec, {})
        if wanted not in made:
            made[wanted] = ByteSymbols(codec, wanted)
        return made[wanted]
