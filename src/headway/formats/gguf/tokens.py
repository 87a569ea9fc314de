"""Read and write the tokenizer in the values of a .gguf file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.bytepairs import CL100K, DIGITS, GPT2, QWEN2, byte_pairs
from headway.codecs.files import library_errors
from headway.codecs.marks import RoleTokens, around, frame
from headway.codecs.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, PieceTable, build
from headway.codecs.tokenizer import framed
from headway.config import from_dict
from headway.errors import UserError, nearest
from headway.formats.usage import Usage

START = "tokenizer.ggml."
_LONGEST = 1000  # characters per token; the longest in known vocabularies have some hundred
_KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask"}


class WordPattern(NamedTuple):
    """How a byte-level BPE splits words, by its name in GGUF."""

    pattern: str
    compose: bool = False
    whole_words: bool = False


WORDS = {
    "default": WordPattern(GPT2),
    "gpt-2": WordPattern(GPT2),
    "phi-2": WordPattern(GPT2),
    "mpt": WordPattern(GPT2),
    "olmo": WordPattern(GPT2),
    "smollm": WordPattern(DIGITS),
    "starcoder": WordPattern(DIGITS),
    "llama-bpe": WordPattern(CL100K, whole_words=True),
    "llama3": WordPattern(CL100K, whole_words=True),
    "llama-v3": WordPattern(CL100K, whole_words=True),
    "dbrx": WordPattern(CL100K),
    "smaug-bpe": WordPattern(CL100K),
    "qwen2": WordPattern(QWEN2, compose=True),
    "deepseek-r1-qwen": WordPattern(QWEN2, compose=True),
}
_BEGINS = ("llama-bpe", "llama3", "llama-v3")  # pre-tokenizers for which llama.cpp adds BOS


class Values(NamedTuple):
    """The tokenizer's values, type-checked."""

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
        """Return one number per token."""
        found = self.get(name, kind, [default] * len(tokens))
        if len(found) != len(tokens) or not all(map(math.isfinite, found)):
            raise UserError(f"{self.source}: {len(found)} {name} for {len(tokens)} tokens; get the file again")
        return found

    def framing(self) -> dict[str, bool]:
        """Whether BOS and EOS frame a text; the defaults are llama.cpp's."""
        begins = self.get("model", str) == "llama" or self.get("pre", str) in _BEGINS
        return {
            "add_bos_token": self.get("add_bos_token", bool, begins),
            "add_eos_token": self.get("add_eos_token", bool, False),
        }


def read_codec(given: Mapping[str, Any], source: str) -> TokenizerCodec | None:
    """Return the tokenizer, None if the file has none. UserError for an unsupported or inconsistent one."""
    values = Values(given, source)
    kind, tokens = values.get("model", str, "none"), values.tokens()
    if kind in ("none", "no_vocab") or not tokens:
        return None
    if kind not in ("llama", "gpt2"):
        known = "llama and gpt2"
        raise UserError(
            f"{source} has a tokenizer of kind {kind[:40]!r}; headway supports {known}: load the model from its folder"
        )
    types = values.parallel("token_type", list[int], tokens, NORMAL)
    if not set(types) <= set(_KINDS):
        raise UserError(f"{source}: a token has unknown type {max(types)}; get the file again")
    tokenizer = _pieces(values, tokens, types) if kind == "llama" else _byte_pairs(values, tokens, types)
    marks = _marks(values, tokens)
    frame(tokenizer, "", marks, values.framing())
    return TokenizerCodec(tokenizer, marks)


def _pieces(values: Values, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = values.parallel("scores", list[float], tokens, 0.0)
    prefix = values.get("add_space_prefix", bool, True)
    fallback = BYTE in types
    pieces = PieceTable(tokens, scores, types, "bpe", fallback, dummy_prefix=prefix, squeeze=False)
    return build(pieces, values.source)


def _byte_pairs(values: Values, tokens: list[str], types: list[int]) -> Tokenizer:
    name = values.get("pre", str, "default")
    if name not in WORDS:
        hint = nearest(name[:40], WORDS)
        raise UserError(f"{values.source} has the pre-tokenizer {name[:40]!r}, which is not supported; {hint}")
    words = WORDS[name]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise UserError(f"{values.source} has {len(tokens)} tokens, {len(tokens) - len(ids)} duplicate; get it again")
    merges = []
    for merge in values.get("merges", list[str], []):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise UserError(f"{values.source}: merge {merge[:80]!r} does not consist of tokens; get the file again")
        merges.append((left, right))
    with library_errors(Path(values.source)):
        tokenizer = byte_pairs(ids, merges, words.pattern, False, words.compose, words.whole_words)
        special = [token for token, kind in zip(tokens, types) if kind in (CONTROL, UNKNOWN)]
        whole = [token for token, kind in zip(tokens, types) if kind == USER_DEFINED]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
    return tokenizer


def _marks(values: Values, tokens: list[str]) -> RoleTokens:
    found = {}
    for role, ours in _ROLES.items():
        number = values.get(f"{role}_token_id", int)
        if number is not None and 0 <= number < len(tokens):
            found[ours] = tokens[number]
    return RoleTokens(**found)


def read_marks(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the special tokens as fields of Usage: BOS only if it is put before a prompt."""
    values = Values(given, source)
    ends = [values.get(f"{name}_token_id", int) for name in ("eos", "eot", "eom")]
    return {
        "begin": values.get("bos_token_id", int) if values.framing()["add_bos_token"] else None,
        "ends": tuple(dict.fromkeys(end for end in ends if end is not None)),
        "pad": values.get("padding_token_id", int),
        "template": from_dict(str, given.get("tokenizer.chat_template", ""), f"{source}: chat_template") or None,
    }


_PROBES = (
    "Hello world",
    "  two  spaces, a tab\tand lines\n\n",
    "naïve 2024's I'll 12345 \u2603 \U0001f600",
    "x=1; y<s>",
)


def write_codec(codec: Codec, symbols: int, usage: Usage) -> dict[str, Any]:
    """Return the values for a model with this vocabulary size; ids that the tokenizer lacks are unused.

    The values are read back and must give the same ids, otherwise a UserError is raised.
    """
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"GGUF cannot store a {type(codec).__name__}; export without a tokenizer")
    if codec.size > symbols:
        raise UserError(f"a tokenizer of {codec.size} tokens does not fit a model of {symbols}; use the model's own")
    state = json.loads(codec.tokenizer.to_str())
    kind = "llama" if state["model"].get("byte_fallback") else "gpt2"
    tokens, types = _tokens(codec, state, symbols)
    said = {"model": kind, "tokens": tokens, "token_type": types, **_mark_values(codec, usage)}
    said |= _piece_values(codec, state, tokens) if kind == "llama" else _byte_pair_values(state)
    values = {START + name: value for name, value in said.items()}
    if usage.template:
        values["tokenizer.chat_template"] = usage.template
    _check(codec, values)
    return values


def _tokens(codec: TokenizerCodec, state: Mapping[str, Any], symbols: int) -> tuple[list[str], list[int]]:
    names = {number: name for name, number in codec.tokenizer.get_vocab(with_added_tokens=True).items()}
    added = {each["id"]: CONTROL if each["special"] else USER_DEFINED for each in state["added_tokens"]}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(symbols)]
    types = [added.get(i, NORMAL if i in names else UNUSED) for i in range(symbols)]
    if state["model"].get("byte_fallback"):
        for byte in range(256):
            number = codec.token(f"<0x{byte:02X}>")
            if number is not None:
                types[number] = BYTE
        if codec.unknown is not None:
            types[codec.unknown] = UNKNOWN
    return tokens, types


def _merges(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges as pairs; older files have them as strings."""
    found = state["model"].get("merges") or []
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in found)
    return [(left, right) for left, right in pairs]


def _piece_values(codec: TokenizerCodec, state: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Score tokens by the first merge that makes them; tokens that no merge makes come last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(state)):
        ranks.setdefault(left + right, rank)
    first = codec.tokenizer.encode("a", add_special_tokens=False).tokens
    prefix = bool(first) and first[0].startswith(SPACE)
    return {"scores": [-float(ranks.get(token, len(ranks))) for token in tokens], "add_space_prefix": prefix}


def _byte_pair_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of the pre-tokenizer; whether whole words come first only breaks a tie."""
    model, found = state["model"], []
    for name, words in WORDS.items():
        plain = json.loads(byte_pairs({"a": 0}, [], words.pattern, False, words.compose, words.whole_words).to_str())
        if name != "default" and model["type"] == "BPE" and _manner(plain) == _manner(state):
            found.append((words.whole_words != bool(model.get("ignore_merges")), len(found), name))
    if not found:
        raise UserError(f"GGUF has no name for the pre-tokenizer of this {model['type']} tokenizer; export without it")
    return {"pre": min(found)[2], "merges": [" ".join(pair) for pair in _merges(state)]}


def _manner(state: Mapping[str, Any]) -> str:
    """Return how a tokenizer splits words, independent of its vocabulary."""
    return json.dumps([state["pre_tokenizer"], state["normalizer"]]).replace(
        '"trim_offsets": true', '"trim_offsets": false'
    )


def _mark_values(codec: TokenizerCodec, usage: Usage) -> dict[str, Any]:
    """Return the ids of special tokens, and whether the tokenizer puts one before a text, which is then BOS, and one
    after it, EOS.
    """
    before, after = (codec.token(name) for name in around(codec.tokenizer))
    begin = _first(before, usage.begin, codec.begin)
    ends = list(dict.fromkeys(([] if after is None else [after]) + list(usage.ends))) or [codec.end]
    ids = {"bos": begin, "eos": ends[0], "unknown": codec.unknown}
    ids |= {"padding": codec.pad, "eot": ends[1] if len(ends) > 1 else None}
    return {
        **{f"{role}_token_id": i for role, i in ids.items() if i is not None},
        "add_bos_token": before is not None,
        "add_eos_token": after is not None,
    }


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _check(codec: TokenizerCodec, values: Mapping[str, Any]) -> None:
    found = read_codec(values, "the tokenizer as GGUF")
    if found is None or any(framed(found, probe) != framed(codec, probe) for probe in _PROBES):
        raise UserError("GGUF cannot store this tokenizer (its ids would change); export without a tokenizer")
