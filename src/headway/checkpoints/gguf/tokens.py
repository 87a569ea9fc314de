"""The tokenizer in the values of a .gguf file: sentencepiece's BPE ("llama") or BPE on bytes ("gpt2")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from headway.codecs import TokenizerCodec
from headway.codecs.bytepairs import CL100K, GPT2, QWEN2, byte_pairs
from headway.codecs.files import library_errors
from headway.codecs.marks import Marks
from headway.codecs.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Pieces, build
from headway.codecs.styles import frame
from headway.config import from_dict
from headway.errors import UserError, nearest

START = "tokenizer.ggml."
_LONGEST = 1000  # characters of a piece; the longest of any vocabulary that is known have some hundred
_KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask"}


class Words(NamedTuple):
    """How a BPE on bytes finds words, under the name that GGUF gives it."""

    pattern: str
    compose: bool = False
    whole_words: bool = False


WORDS = {
    "default": Words(GPT2),
    "gpt-2": Words(GPT2),
    "phi-2": Words(GPT2),
    "mpt": Words(GPT2),
    "olmo": Words(GPT2),
    "llama-bpe": Words(CL100K, whole_words=True),
    "llama3": Words(CL100K, whole_words=True),
    "llama-v3": Words(CL100K, whole_words=True),
    "dbrx": Words(CL100K),
    "smaug-bpe": Words(CL100K),
    "qwen2": Words(QWEN2, compose=True),
    "deepseek-r1-qwen": Words(QWEN2, compose=True),
}
_BEGINS = ("llama-bpe", "llama3", "llama-v3")  # ways to find words with which llama.cpp puts a begin before a text


class Values(NamedTuple):
    """The tokenizer's values with their types checked."""

    given: Mapping[str, Any]
    source: str

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        found = self.given.get(START + name)
        return default if found is None else from_dict(kind, found, f"{self.source}: {START}{name}")

    def tokens(self) -> list[str]:
        found = self.get("tokens", list[str], [])
        wrong = next((i for i, token in enumerate(found) if not token or len(token) > _LONGEST), None)
        if wrong is not None:
            raise UserError(f"{self.source}: token {wrong} has {len(found[wrong])} characters; get the file again")
        return found

    def parallel(self, name: str, kind: Any, tokens: list[str], default: float) -> list[Any]:
        """Numbers, one for each token."""
        found = self.get(name, kind, [default] * len(tokens))
        if len(found) != len(tokens) or not all(map(math.isfinite, found)):
            raise UserError(f"{self.source}: {len(found)} {name} for {len(tokens)} tokens; get the file again")
        return found

    def framing(self) -> dict[str, bool]:
        """Whether a begin stands before a text and an end after it; what a file does not say is as llama.cpp has it."""
        begins = self.get("model", str) == "llama" or self.get("pre", str) in _BEGINS
        return {
            "add_bos_token": self.get("add_bos_token", bool, begins),
            "add_eos_token": self.get("add_eos_token", bool, False),
        }


def read_codec(given: Mapping[str, Any], source: str) -> TokenizerCodec | None:
    """The codec, None where a file has no tokenizer. UserError for one that is not read or does not hold together."""
    values = Values(given, source)
    kind, tokens = values.get("model", str, "none"), values.tokens()
    if kind in ("none", "no_vocab") or not tokens:
        return None
    if kind not in ("llama", "gpt2"):
        known = "llama and gpt2"
        raise UserError(
            f"{source} has a tokenizer of kind {kind[:40]!r}; headway reads {known}: load the model from its folder"
        )
    types = values.parallel("token_type", list[int], tokens, NORMAL)
    if not set(types) <= set(_KINDS):
        raise UserError(f"{source}: a token has type {max(types)}, which is not known; get the file again")
    tokenizer = _pieces(values, tokens, types) if kind == "llama" else _byte_pairs(values, tokens, types)
    marks = _marks(values, tokens)
    frame(tokenizer, "", marks, values.framing())
    return TokenizerCodec(tokenizer, marks)


def _pieces(values: Values, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = values.parallel("scores", list[float], tokens, 0.0)
    prefix = values.get("add_space_prefix", bool, True)
    fallback = BYTE in types
    pieces = Pieces(tokens, scores, types, "bpe", fallback, dummy_prefix=prefix, squeeze=False)
    return build(pieces, values.source)


def _byte_pairs(values: Values, tokens: list[str], types: list[int]) -> Tokenizer:
    name = values.get("pre", str, "default")
    if name not in WORDS:
        hint = nearest(name[:40], WORDS)
        raise UserError(f"{values.source} finds words in the manner of {name[:40]!r}, which is not read; {hint}")
    words = WORDS[name]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise UserError(f"{values.source} has {len(tokens)} tokens, of which {len(tokens) - len(ids)} come twice")
    merges = []
    for merge in values.get("merges", list[str], []):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise UserError(f"{values.source}: merge {merge[:80]!r} is not of tokens; get the file again")
        merges.append((left, right))
    with library_errors(Path(values.source)):
        tokenizer = byte_pairs(ids, merges, words.pattern, False, words.compose, words.whole_words)
        special = [token for token, kind in zip(tokens, types) if kind in (CONTROL, UNKNOWN)]
        whole = [token for token, kind in zip(tokens, types) if kind == USER_DEFINED]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
    return tokenizer


def _marks(values: Values, tokens: list[str]) -> Marks:
    found = {}
    for role, ours in _ROLES.items():
        number = values.get(f"{role}_token_id", int)
        if number is not None and 0 <= number < len(tokens):
            found[ours] = tokens[number]
    return Marks(**found)


def read_marks(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a Usage says of marks: a begin only where it is put before a prompt."""
    values = Values(given, source)
    ends = [values.get(f"{name}_token_id", int) for name in ("eos", "eot", "eom")]
    return {
        "begin": values.get("bos_token_id", int) if values.framing()["add_bos_token"] else None,
        "ends": tuple(dict.fromkeys(end for end in ends if end is not None)),
        "pad": values.get("padding_token_id", int),
        "template": from_dict(str, given.get("tokenizer.chat_template", ""), f"{source}: chat_template") or None,
    }
