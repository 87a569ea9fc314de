"""Read and write the tokenizer stored in a .gguf file's values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, PieceTable, build
from headway.codecs.special_tokens import SpecialTokens, set_post_processor, surrounding_tokens
from headway.codecs.tokenizer import encode_with_special_tokens
from headway.codecs.tokenizer_files import library_errors
from headway.codecs.vocabularies import byte_pairs, word_pieces
from headway.config import from_dict
from headway.errors import UserError, nearest
from headway.formats.gguf.pretokenizers import BOS_PRETOKENIZERS, WORDS
from headway.formats.usage import Usage

PREFIX = "tokenizer.ggml."
_MAX_TOKEN_CHARS = 1000  # characters per token; the longest in known vocabularies have some hundred
_KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask"}
_ROLES |= {"cls": "cls", "seperator": "sep"}  # spelled so in llama.cpp
_INNER = "##"  # before a piece of BERT that does not begin a word; GGUF marks those that do instead


class TokenizerValues(NamedTuple):
    """The tokenizer's values, type-checked."""

    values: Mapping[str, Any]
    source: str

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        raw = self.values.get(PREFIX + name)
        return default if raw is None else from_dict(kind, raw, f"{self.source}: {PREFIX}{name}")

    def tokens(self) -> list[str]:
        tokens = self.get("tokens", list[str], [])
        invalid = next((i for i, token in enumerate(tokens) if not token or len(token) > _MAX_TOKEN_CHARS), None)
        if invalid is not None:
            raise UserError(f"{self.source}: token {invalid} has {len(tokens[invalid])} characters; get the file again")
        return tokens

    def parallel(self, name: str, kind: Any, tokens: list[str], default: float) -> list[Any]:
        """Return one number per token."""
        column = self.get(name, kind, [default] * len(tokens))
        if len(column) != len(tokens) or not all(map(math.isfinite, column)):
            raise UserError(f"{self.source}: {len(column)} {name} for {len(tokens)} tokens; get the file again")
        return column

    def framing(self) -> dict[str, bool]:
        """Whether BOS and EOS frame a text; the defaults are llama.cpp's."""
        kind = self.get("model", str)
        add_bos = kind in ("llama", "bert") or self.get("pre", str) in BOS_PRETOKENIZERS
        return {
            "add_bos_token": self.get("add_bos_token", bool, add_bos),
            "add_eos_token": self.get("add_eos_token", bool, kind == "bert"),
        }


def read_codec(raw_values: Mapping[str, Any], source: str) -> TokenizerCodec | None:
    """Return the tokenizer, None if the file has none. UserError for an unsupported or inconsistent one."""
    values = TokenizerValues(raw_values, source)
    kind, tokens = values.get("model", str, "none"), values.tokens()
    if kind in ("none", "no_vocab") or not tokens:
        return None
    if kind not in ("llama", "gpt2", "bert"):
        known = "llama, gpt2 and bert"
        raise UserError(
            f"{source} has a tokenizer of kind {kind[:40]!r}; headway supports {known}: load the model from its folder"
        )
    types = values.parallel("token_type", list[int], tokens, NORMAL)
    if not set(types) <= set(_KINDS):
        raise UserError(f"{source}: a token has unknown type {max(types)}; get the file again")
    if kind == "llama":
        scores = values.parallel("scores", list[float], tokens, 0.0)
        prefix = values.get("add_space_prefix", bool, True)
        table = PieceTable(tokens, scores, types, "bpe", BYTE in types, dummy_prefix=prefix, squeeze=False)
        tokenizer = build(table, source)
    elif kind == "bert":
        tokenizer, tokens = _build_word_pieces(values, tokens, types)
    else:
        tokenizer = _build_bpe(values, tokens, types)
    by_role = {}
    for role, role_name in _ROLES.items():
        token_id = values.get(f"{role}_token_id", int)
        if token_id is not None and 0 <= token_id < len(tokens):
            by_role[role_name] = tokens[token_id]
    special_tokens = SpecialTokens(**by_role)
    set_post_processor(tokenizer, kind if kind == "bert" else "", special_tokens, values.framing())
    return TokenizerCodec(tokenizer, special_tokens)


def _build_word_pieces(values: TokenizerValues, tokens: list[str], types: list[int]) -> tuple[Tokenizer, list[str]]:
    """Return BERT's tokenizer, lower-casing as in llama.cpp, and its tokens as in vocab.txt."""
    names = [
        token.removeprefix(SPACE) if kind != NORMAL or token.startswith(SPACE) else _INNER + token
        for token, kind in zip(tokens, types)
    ]
    ids = {token: i for i, token in enumerate(names)}
    unknown = values.get("unknown_token_id", int, ids.get("[UNK]", -1))
    if len(ids) < len(names) or "" in ids or not 0 <= unknown < len(names):
        raise UserError(
            f"{values.source} has {len(names)} tokens, {len(names) - len(ids)} duplicate, and {unknown} as the unknown "
            "one; get it again"
        )
    with library_errors(Path(values.source)):
        tokenizer = word_pieces(ids, names[unknown], {})
        special = [token for token, kind in zip(names, types) if kind in (CONTROL, UNKNOWN)]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer, names


def _build_bpe(values: TokenizerValues, tokens: list[str], types: list[int]) -> Tokenizer:
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
        tokenizer = byte_pairs(ids, merges, words.patterns, False, words.compose, words.whole_words)
        special = [token for token, kind in zip(tokens, types) if kind in (CONTROL, UNKNOWN)]
        user_defined = [token for token, kind in zip(tokens, types) if kind == USER_DEFINED]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
    return tokenizer


def read_special_tokens(raw_values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the special tokens as fields of Usage: BOS only if it is put before a prompt."""
    values = TokenizerValues(raw_values, source)
    eos_ids = [values.get(f"{name}_token_id", int) for name in ("eos", "eot", "eom")]
    return {
        "begin": values.get("bos_token_id", int) if values.framing()["add_bos_token"] else None,
        "ends": tuple(dict.fromkeys(eos for eos in eos_ids if eos is not None)),
        "pad": values.get("padding_token_id", int),
        "template": from_dict(str, raw_values.get("tokenizer.chat_template", ""), f"{source}: chat_template") or None,
    }


_PROBES = (
    "Hello world",
    "  two  spaces, a tab\tand lines\n\n",
    "naïve 2024's I'll 12345 \u2603 \U0001f600",
    "x=1; y<s>",
)


def write_codec(codec: Codec, vocab_size: int, usage: Usage) -> dict[str, Any]:
    """Return the values for a model with this vocabulary size; ids that the tokenizer lacks are unused.

    The values are read back and must produce the same ids; otherwise a UserError is raised.
    """
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"GGUF cannot store a {type(codec).__name__}; export without a tokenizer")
    if codec.vocab_size > vocab_size:
        raise UserError(
            f"a tokenizer with {codec.vocab_size} tokens does not fit a model with {vocab_size}; use the model's own"
        )
    state = json.loads(codec.tokenizer.to_str())
    is_bert = state["model"]["type"] == "WordPiece" and (state["normalizer"] or {}).get("type") == "BertNormalizer"
    kind = "llama" if state["model"].get("byte_fallback") else "bert" if is_bert else "gpt2"
    tokens, types = _tokens(codec, state, vocab_size)
    # A token that the tokenizer puts before a text is BOS, and one after it EOS.
    before, after = (codec.token_id(name) for name in surrounding_tokens(codec.tokenizer))
    bos = next((i for i in (before, usage.begin, codec.bos_id) if i is not None), None)
    eos_ids = list(dict.fromkeys(([] if after is None else [after]) + list(usage.ends))) or [codec.eos_id]
    ids = {"bos": bos, "eos": eos_ids[0], "unknown": codec.unk_id}
    ids |= {"padding": codec.pad, "eot": eos_ids[1] if len(eos_ids) > 1 else None}
    fields = {
        "model": kind,
        "tokens": tokens,
        "token_type": types,
        **{f"{role}_token_id": i for role, i in ids.items() if i is not None},
        "add_bos_token": before is not None,
        "add_eos_token": after is not None,
    }
    if kind == "bert":
        normal = [token[2:] if token.startswith(_INNER) else SPACE + token for token in tokens]
        fields["tokens"] = [token if kind != NORMAL else piece for token, piece, kind in zip(tokens, normal, types)]
        fields |= {"mask_token_id": codec.mask, "cls_token_id": before, "seperator_token_id": after}
        fields = {name: value for name, value in fields.items() if value is not None}
    else:
        fields |= _piece_values(codec, state, tokens) if kind == "llama" else _byte_pair_values(state)
    values = {PREFIX + name: value for name, value in fields.items()}
    if usage.template:
        values["tokenizer.chat_template"] = usage.template
    restored = read_codec(values, "the tokenizer as GGUF")
    if restored is None or any(
        encode_with_special_tokens(restored, probe) != encode_with_special_tokens(codec, probe) for probe in _PROBES
    ):
        raise UserError("GGUF cannot store this tokenizer (its ids would change); export without a tokenizer")
    return values


def _tokens(codec: TokenizerCodec, state: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    names = {token_id: name for name, token_id in codec.tokenizer.get_vocab(with_added_tokens=True).items()}
    added = {
        added_token["id"]: CONTROL if added_token["special"] else USER_DEFINED for added_token in state["added_tokens"]
    }
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    types = [added.get(i, NORMAL if i in names else UNUSED) for i in range(vocab_size)]
    if state["model"].get("byte_fallback"):
        for byte in range(256):
            token_id = codec.token_id(f"<0x{byte:02X}>")
            if token_id is not None:
                types[token_id] = BYTE
        if codec.unk_id is not None:
            types[codec.unk_id] = UNKNOWN
    return tokens, types


def _merges(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges as pairs; older files have them as strings."""
    merges = state["model"].get("merges") or []
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _piece_values(codec: TokenizerCodec, state: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Score tokens by the first merge that produces them; tokens without a merge come last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(state)):
        ranks.setdefault(left + right, rank)
    first = codec.tokenizer.encode("a", add_special_tokens=False).tokens
    prefix = bool(first) and first[0].startswith(SPACE)
    return {"scores": [-float(ranks.get(token, len(ranks))) for token in tokens], "add_space_prefix": prefix}


def _byte_pair_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of the pre-tokenizer; whether whole words come first only breaks a tie."""
    model, candidates = state["model"], []
    for name, words in WORDS.items():
        plain = json.loads(byte_pairs({"a": 0}, [], words.patterns, False, words.compose, words.whole_words).to_str())
        if name != "default" and model["type"] == "BPE" and _pretokenization(plain) == _pretokenization(state):
            candidates.append((words.whole_words != bool(model.get("ignore_merges")), len(candidates), name))
    if not candidates:
        raise UserError(f"GGUF has no name for the pre-tokenizer of this {model['type']} tokenizer; export without it")
    return {"pre": min(candidates)[2], "merges": [" ".join(pair) for pair in _merges(state)]}


def _pretokenization(state: Mapping[str, Any]) -> str:
    """Return how a tokenizer splits words, independent of its vocabulary, and in one of the ways to write it: patterns
    that match every character may as well remove what is between their matches.
    """
    normalizer = None if state["normalizer"] == {"type": "Sequence", "normalizers": []} else state["normalizer"]
    text = json.dumps([state["pre_tokenizer"], normalizer])
    for written, same in (
        ('"trim_offsets": true', '"trim_offsets": false'),
        ('"behavior": "Removed", "invert": true', '"behavior": "Isolated", "invert": false'),
        (r"\\r", r"\r"),
        (r"\\n", r"\n"),
    ):
        text = text.replace(written, same)
    return text
