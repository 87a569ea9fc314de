"""A codec as the values of a .gguf file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headway.checkpoints.gguf.tokens import START, WORDS, read_codec
from headway.checkpoints.usage import Usage
from headway.codecs import Codec, TokenizerCodec
from headway.codecs.bytepairs import byte_pairs
from headway.codecs.frame import framed
from headway.codecs.marks import around
from headway.codecs.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from headway.errors import UserError

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
    said = {"model": kind, "tokens": tokens, "token_type": types, **_marks(codec, usage)}
    said |= _pieces(codec, state, tokens) if kind == "llama" else _byte_pairs(state)
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


def _pieces(codec: TokenizerCodec, state: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Scores by the first merge that makes a piece; what no merge makes comes last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(state)):
        ranks.setdefault(left + right, rank)
    first = codec.tokenizer.encode("a", add_special_tokens=False).tokens
    prefix = bool(first) and first[0].startswith(SPACE)
    return {"scores": [-float(ranks.get(token, len(ranks))) for token in tokens], "add_space_prefix": prefix}


def _byte_pairs(state: Mapping[str, Any]) -> dict[str, Any]:
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


def _marks(codec: TokenizerCodec, usage: Usage) -> dict[str, Any]:
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
