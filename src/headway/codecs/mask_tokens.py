"""Masks and token pieces of a codec: vocabulary tables for masking, text with masks as ids, and tokens as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from headway.codecs.special_tokens import MASK_NAMES, special_ids
from headway.codecs.tokenizer import BYTES, Codec, TokenizerCodec, decoder_steps, sequence_template
from headway.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens that codecs trained for masking have, as in BERT."""

_BYTE_LEVEL, _SPACE_CHARACTER = "ByteLevel", "\u2581"  # the character that sentencepiece writes for a space
_LETTER, _DIGIT, _PUNCTUATION, _SPACE, _NONE = range(5)


@dataclass(frozen=True)
class TokenTables:
    """Tables over a codec's vocabulary.

    `mask` is the id of the mask token. `text`, bool [C], marks the tokens that are text, and `opens`, bool [C], those
    that start a word whatever precedes them. `head` and `tail`, int [C], are the kinds of a token's first and last
    character; a word also starts where these differ between two tokens.
    """

    mask: int
    text: np.ndarray
    opens: np.ndarray
    head: np.ndarray
    tail: np.ndarray

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Where words start, bool [B, T], in ids [B, T]. The first position in a row is a start."""
        starts = self.opens[ids]
        starts[:, 1:] |= self.head[ids[:, 1:]] != self.tail[ids[:, :-1]]
        starts[:, 0] = True
        return starts


def token_tables(codec: Codec) -> TokenTables:
    """The tables for a codec. Raises UserError if it has no mask token or only special tokens."""
    tokenizer = _tokenizer_codec(codec).tokenizer
    special = special_ids(tokenizer)
    token_of = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    text = np.zeros(codec.vocab_size, bool)
    text[[i for i in token_of if i not in special and i != codec.unk_id]] = True
    if not text.any():
        raise UserError("the tokenizer has only special tokens; use one trained on text")
    opens, head, tail = np.ones(codec.vocab_size, bool), *np.full((2, codec.vocab_size), _NONE)
    prefix = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""  # "##" in WordPiece
    level = _space_style(codec)
    for i in np.flatnonzero(text).tolist():
        if prefix:
            opens[i], head[i], tail[i] = not token_of[i].startswith(prefix), _LETTER, _LETTER
        else:
            token_text = _token_text(token_of[i], level)
            opens[i] = token_text[:1].isspace()
            head[i] = _character_kind(token_text[:1])
            tail[i] = _character_kind(token_text[-1:])
    return TokenTables(mask_id(codec), text, opens, head, tail)


def mask_id(codec: Codec) -> int:
    """The id of a codec's mask token. Raises UserError if it has none."""
    mask = _tokenizer_codec(codec).mask
    if mask is None:
        raise UserError(
            f"the tokenizer has no mask token ({' or '.join(MASK_NAMES)}); use one from a masked language model, or do "
            "not set a tokenizer to train one"
        )
    return mask


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps in a part of a tokenizer's JSON, which may be a sequence, a single step, or nothing."""
    if part is None:
        return []
    return part.get("normalizers") or part.get("pretokenizers") or [part]


def token_name(codec: Codec, token: int) -> str:
    """The name of a token in the tokenizer."""
    return _tokenizer_codec(codec).tokenizer.id_to_token(token) or ""


def _tokenizer_codec(codec: Codec) -> TokenizerCodec:
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"masking needs a tokenizer.json, not a {type(codec).__name__}; use another tokenizer")
    return codec


def _space_style(codec: Codec) -> str:
    """How a tokenizer represents spaces: as bytes, with sentencepiece's character, or as plain spaces (empty)."""
    steps = json.dumps(decoder_steps(_tokenizer_codec(codec).tokenizer))
    return (
        _BYTE_LEVEL if _BYTE_LEVEL in steps else _SPACE_CHARACTER if "Metaspace" in steps or "\\u2581" in steps else ""
    )


def _token_text(token: str, style: str) -> str:
    if style == _BYTE_LEVEL and all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token).decode("utf-8", "replace")
    return token.replace(_SPACE_CHARACTER, " ") if style == _SPACE_CHARACTER else token


def _character_kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    if character.isdigit():
        return _DIGIT
    # A partial character counts as a letter: most scripts beyond ASCII form words.
    return _LETTER if character.isalpha() or character == "\ufffd" else _PUNCTUATION


def masked_ids(codec: Codec, text: str) -> list[int]:
    """The ids of text with masks, between the codec's special tokens.

    If the tokenizer joins a space to the word after it, the mask replaces that space too.
    """
    mask = mask_id(codec)
    mask_names = sorted({*MASK_NAMES, token_name(codec, mask)}, key=len, reverse=True)
    parts = re.split("|".join(map(re.escape, mask_names)), text)
    style, tokenizer = _space_style(codec), _tokenizer_codec(codec).tokenizer
    token_texts = (_token_text(token, style) for token in tokenizer.get_vocab(with_added_tokens=False))
    if any(token_text.startswith(" ") and token_text.strip() for token_text in token_texts):
        parts = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
    continuation = codec
    if len(parts) > 1:  # without the space that the codec may insert before the start
        state = json.loads(tokenizer.to_str())
        normalizers = [step for step in _steps(state["normalizer"]) if step["type"] != "Prepend"]
        state["normalizer"] = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
        for step in _steps(state["pre_tokenizer"]):
            step |= {"prepend_scheme": "never"} if "prepend_scheme" in step else {}
            step |= {"add_prefix_space": False} if "add_prefix_space" in step else {}
        continuation = TokenizerCodec(Tokenizer.from_str(json.dumps(state)))
    encoded = [codec.encode(parts[0]), *(continuation.encode(part) for part in parts[1:])]
    inner = [*encoded[0], *(i for _, part in pairwise(encoded) for i in (mask, *part))]
    return sequence_template(codec).add_special_tokens(inner)


def token_pieces(codec: Codec) -> Callable[[int], str]:
    """A function from an id to the token's text, with the spaces that belong to it; for a special token its name."""
    if not isinstance(codec, TokenizerCodec):
        return lambda token: codec.decode([token])
    tokenizer, style = codec.tokenizer, _space_style(codec)
    return lambda token: _token_text(tokenizer.id_to_token(token) or "", style)
