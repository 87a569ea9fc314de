"""The tokenizer in the values of a .gguf file, and a codec as such values."""

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
_LONGEST = 1000  # characters of a piece; the longest of any vocabulary that is known have some hundred
_KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask"}


class WordPattern(NamedTuple):
    """How a BPE on bytes finds words, under the name that GGUF gives it."""

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
    pieces = PieceTable(tokens, scores, types, "bpe", fallback, dummy_prefix=prefix, squeeze=False)
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


def _marks(values: Values, tokens: list[str]) -> RoleTokens:
    found = {}
    for role, ours in _ROLES.items():
        number = values.get(f"{role}_token_id", int)
        if number is not None and 0 <= number < len(tokens):
            found[ours] = tokens[number]
    return RoleTokens(**found)


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


_PROBES = (
    "Hello world",
    "  two  spaces, a tab\tand lines\n\n",
    "naïve 2024's I'll 12345 \u2603 \U0001f600",
    "x=1; y<s>",
)


def write_codec(codec: Codec, symbols: int, usage: Usage) -> dict[str, Any]:
    """The values for a model of so many symbols; those that the codec lacks are unused.

    What is said is read back and must give the same ids: a UserError where it does not.
    """
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"GGUF has no form for a {type(codec).__name__}; export without a tokenizer")
    if codec.size > symbols:
        raise UserError(f"a tokenizer of {codec.size} symbols does not fit a model of {symbols}; use the model's own")
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
    """Pairs; older files have them as texts."""
    found = state["model"].get("merges") or []
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in found)
    return [(left, right) for left, right in pairs]


def _piece_values(codec: TokenizerCodec, state: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Scores by the first merge that makes a piece; what no merge makes comes last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(state)):
        ranks.setdefault(left + right, rank)
    first = codec.tokenizer.encode("a", add_special_tokens=False).tokens
    prefix = bool(first) and first[0].startswith(SPACE)
    return {"scores": [-float(ranks.get(token, len(ranks))) for token in tokens], "add_space_prefix": prefix}


def _byte_pair_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """The name of the way in which words are found; whether whole words come first only breaks a tie."""
    model, found = state["model"], []
    for name, words in WORDS.items():
        plain = json.loads(byte_pairs({"a": 0}, [], words.pattern, False, words.compose, words.whole_words).to_str())
        if name != "default" and model["type"] == "BPE" and _manner(plain) == _manner(state):
            found.append((words.whole_words != bool(model.get("ignore_merges")), len(found), name))
    if not found:
        raise UserError(
            f"the tokenizer ({model['type']}) finds words in a way that GGUF has no name for; export without"
        )
    return {"pre": min(found)[2], "merges": [" ".join(pair) for pair in _merges(state)]}


def _manner(state: Mapping[str, Any]) -> str:
    """How a tokenizer finds words, apart from its words."""
    return json.dumps([state["pre_tokenizer"], state["normalizer"]]).replace(
        '"trim_offsets": true', '"trim_offsets": false'
    )


def _mark_values(codec: TokenizerCodec, usage: Usage) -> dict[str, Any]:
    """The ids of marks, and whether the tokenizer puts one before a text, which is then the bos, and one after it, the
    eos.
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
        raise UserError("GGUF has no form for this tokenizer: its ids would be others; export without a tokenizer")
