"""A codec's tokens as bytes, as llguidance needs them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.special_tokens import special_ids
from headway.codecs.tokenizer import BYTES, LINE_SPACE_STEPS, decoder_steps
from headway.errors import UserError
from headway.generate.sampling import bit_mask

SPECIAL_PREFIX = b"\xff"  # before the name of a special token; this byte occurs in no text
_INVALID_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no text contains
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_END_PATTERN = re.compile(rb"[,\]}\s]|^[tfn]")  # the first letter of a literal determines the rest
_REQUIRED_BYTES = {*range(256)} - _INVALID_BYTES
_MAX_FORCED = 256  # characters of forced text to tokenize
_FORCED_MARGIN = 64  # characters at its end that the cut may affect


class TokenBytes:
    """A codec's tokens for llguidance, with the ids that may end a text.

    headway's own tokenizers drop a space at the start of each line; for all others `line_masks` is None. For those it
    has two bit masks of the tokens that add exactly their bytes, at the start of a line and within one; a line starts
    after the tokens `line_breaks`.
    """

    def __init__(self, codec: Codec, stop_ids: tuple[int, ...]) -> None:
        """UserError for a codec whose texts are not the concatenated bytes of its tokens."""
        if not isinstance(codec, TokenizerCodec):
            raise UserError(
                f"a {type(codec).__name__} generates no text, so it supports no response format; use a text model"
            )
        tokens = _bytes_per_token(codec)
        unknown_id = next((stop_id for stop_id in stop_ids if not 0 <= stop_id < len(tokens)), None)
        if unknown_id is not None or not stop_ids:
            problem = "no end token" if unknown_id is None else f"no token {unknown_id} to end a text"
            raise UserError(f"the tokenizer has {problem}, so no response format can be complete; pass a valid id")
        self.line_masks: tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]] | None = None
        if decoder_steps(codec.tokenizer)[1:] == LINE_SPACE_STEPS:
            within = np.array([b"\n " not in token for token in tokens])
            self.line_masks = bit_mask(within & [not token.startswith(b" ") for token in tokens]), bit_mask(within)
        self.line_breaks = frozenset(i for i, token in enumerate(tokens) if token.endswith(b"\n"))
        for stop_id in stop_ids:  # an end token is not part of the text
            tokens[stop_id] = SPECIAL_PREFIX + tokens[stop_id].removeprefix(SPECIAL_PREFIX)
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.num_words = -(-len(tokens) // 32)
        self.stop_ids = stop_ids
        self.tokenizer = LLTokenizer(_TokenizerAdapter(codec.tokenizer, tokens, stop_ids[0]), eos_token=list(stop_ids))  # type: ignore[arg-type]

    @cached_property
    def json_end_tokens(self) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """Ids of the tokens that may end a JSON string, and of those that may end another value."""
        in_strings = [i for i, token in enumerate(self.tokens) if b'"' in token]
        outside = [i for i, token in enumerate(self.tokens) if _END_PATTERN.search(token) or token.count(b'"') > 1]
        return np.array(in_strings, np.int64), np.array(outside, np.int64)


class _TokenizerAdapter:
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

        Only the first tokens of a long text are returned: the rest is tokenized again after each of them.
        """
        if len(text) > _MAX_FORCED:
            ids, stable_length = self(text[:_MAX_FORCED]), len(text[: _MAX_FORCED - _FORCED_MARGIN].encode())
            offsets = accumulate(len(self.tokens[i]) for i in ids)
            return [i for i, offset in zip(ids, offsets) if offset <= stable_length] or ids[:1]
        ids, text_bytes = self._tokenizer.encode(text, add_special_tokens=False).ids, text.encode()
        joined = b"".join(self.tokens[i] for i in ids)
        if joined == b" " + text_bytes:  # the space that is added at the start of a text
            remainder = self.tokens[ids[0]][1:]
            return [*([self._ids[remainder]] if remainder in self._ids else self._byte_ids(remainder)), *ids[1:]]
        return ids if joined == text_bytes else self._byte_ids(text_bytes)

    def _byte_ids(self, text_bytes: bytes) -> list[int]:
        return [self._ids[bytes([byte])] for byte in text_bytes]


def _bytes_per_token(codec: TokenizerCodec) -> list[bytes]:
    """The bytes of each token; empty for tokens without text, and with a prefix for special tokens."""
    steps = decoder_steps(codec.tokenizer)
    kinds = [step["type"] for step in steps]
    if kinds[:1] == ["ByteLevel"] and steps[1:] in ([], LINE_SPACE_STEPS):
        to_bytes = _byte_level
    elif kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        replacements = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
        replacements += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        if any(pattern is None for pattern, _ in replacements):
            raise _unsupported_error(codec, kinds)
        to_bytes = _SentencePieceBytes(replacements)
    else:
        raise _unsupported_error(codec, kinds)
    special, tokens = special_ids(codec.tokenizer), []
    for i in range(codec.vocab_size):
        name = codec.tokenizer.id_to_token(i)
        if name is None or i == codec.unk_id:
            tokens.append(b"")
        else:
            tokens.append(SPECIAL_PREFIX + name.encode() if i in special else to_bytes(name))
    missing = sorted(_REQUIRED_BYTES - {token[0] for token in tokens if len(token) == 1})
    if missing:
        byte_name = repr(chr(missing[0])) if missing[0] < 128 else f"the byte 0x{missing[0]:X}"
        raise UserError(
            f"the tokenizer has no token for {byte_name} ({len(missing)} bytes have none), so response formats cannot "
            "be "
            "enforced; use a model with a token for every byte"
        )
    return tokens


def _unsupported_error(codec: TokenizerCodec, kinds: list[str]) -> UserError:
    model = type(codec.tokenizer.model).__name__
    reason = f"is joined by {', '.join(kinds)}" if kinds else "is joined by spaces"
    return UserError(
        f"the text of this {model} tokenizer {reason}, which response formats do not support; use a model with a "
        "byte-level tokenizer, or one of sentencepiece with byte fallback"
    )


def _byte_level(name: str) -> bytes:
    """The bytes of a token of a byte-level tokenizer."""
    known = all(character in BYTES for character in name)
    return bytes(BYTES[character] for character in name) if known else name.encode()


class _SentencePieceBytes:
    """The bytes of a sentencepiece token."""

    def __init__(self, replaced: list[tuple[str, str]]) -> None:
        self._replaced = replaced

    def __call__(self, name: str) -> bytes:
        if _BYTE.fullmatch(name):
            return bytes.fromhex(name[3:5])
        for pattern, content in self._replaced:
            name = name.replace(pattern, content)
        return name.encode()


_cache: WeakKeyDictionary[Codec, dict[tuple[int, ...], TokenBytes]] = WeakKeyDictionary()
_lock = Lock()


def token_bytes_of(codec: Codec, stop_ids: Iterable[int]) -> TokenBytes:
    """The codec's tokens, created once: a large vocabulary takes about a second. Thread-safe."""
    all_stop_ids = tuple(sorted({*stop_ids, *(() if codec.eos_id is None else (codec.eos_id,))}))
    with _lock:
        by_stop_ids = _cache.setdefault(codec, {})
        if all_stop_ids not in by_stop_ids:
            by_stop_ids[all_stop_ids] = TokenBytes(codec, all_stop_ids)
        return by_stop_ids[all_stop_ids]
