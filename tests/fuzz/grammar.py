"""Tokenizers as their JSON may have them, of valid structure and hostile values: a pure function of a draw."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

# What good files hold stands first in each of these, and in what is chosen from below: see mutate.Mild.
TEXTS = (
    "a",
    " ",
    "\u2581",
    "\u00e9",
    "t",
    "\n",
    "\u0301",
    "",
    "aa",
    "ab",
    "the",
    "\ufdfa",
    "\0",
    "##",
    "</w>",
    "\U0001f600",
)
TEXTS += ("x" * 70, "a" * 300, "\ufdd4", "h\ufdd4", "<0x41>", "<s>", "\u4e2d\u4e2d")
PATTERNS = ("a", "\\s+", " {2,}", ".", "[^a]", "\\p{L}+|\\s", "", ".*", "(?=.)", "a|", "(", "[", "^", "\\b", "\\n\\s*$")
PATTERNS += ("(a+)+$", "x{0,5}", "(?i:'s|'t)| ?\\w+", "\\A +| +\\z", "a{99999}", "(?<=a)(?=b)", "\\X", "\\1")
NUMBERS = (1, 2, 3, 0, 17, 100, 250, 1 << 10, 1 << 20, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
PIECES = (
    "a",
    "b",
    "c",
    "t",
    "h",
    "e",
    " ",
    "\u2581",
    "th",
    "the",
    "\u0120",
    "##a",
    "##e",
    "<s>",
    "</s>",
    "<unk>",
    "\u010a",
)


def composed(draw: random.Random) -> bytes:
    """A tokenizer.json."""
    parts = {"version": "1.0", "truncation": _truncation(draw), "padding": _padding(draw)}
    parts["added_tokens"] = [_added(draw, 17 + i) for i in range(draw.choice((0, 0, 1, 3)))]
    parts |= {
        name: _sequence(draw, makers, inner, 0) if draw.random() < 0.6 else None
        for name, (makers, inner) in SEQUENCES.items()
    }
    parts["model"] = draw.choice((_bpe, _wordpiece, _unigram, _words))(draw)
    if draw.random() < 0.1:
        parts = dict(draw.sample(sorted(parts.items()), len(parts)))
    return json.dumps(parts, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _sequence(draw: random.Random, makers: Sequence[Any], inner: str, depth: int) -> dict[str, Any]:
    """A step, or steps one after the other, a few of them many times."""
    if depth > 2 or draw.random() < 0.5:
        return draw.choice(makers)(draw)
    steps = [_sequence(draw, makers, inner, depth + 1) for _ in range(draw.choice((1, 2, 3, 0)))]
    return {"type": "Sequence", inner: steps * draw.choice((1,) if depth else (1, 1, 1, 1, 7, 70))}


def _truth(draw: random.Random) -> bool:
    return draw.random() < 0.5


def _pattern(draw: random.Random) -> dict[str, str]:
    return {"Regex": draw.choice(PATTERNS)} if _truth(draw) else {"String": draw.choice(TEXTS)}


def _replace(draw: random.Random) -> dict[str, Any]:
    return {"type": "Replace", "pattern": _pattern(draw), "content": draw.choice(TEXTS)}


def _plain(*names: str) -> Any:
    return lambda draw: {"type": draw.choice(names)}


def _bert(draw: random.Random) -> dict[str, Any]:
    flags = ("clean_text", "handle_chinese_chars", "lowercase")
    strip = draw.choice((None, True, False))
    return {"type": "BertNormalizer", "strip_accents": strip, **{flag: _truth(draw) for flag in flags}}


def _strip(draw: random.Random) -> dict[str, Any]:
    return {"type": "Strip", "strip_left": _truth(draw), "strip_right": _truth(draw)}


def _prepend(draw: random.Random) -> dict[str, Any]:
    return {"type": "Prepend", "prepend": draw.choice(TEXTS)}


def _bytes(draw: random.Random) -> dict[str, Any]:
    return {"type": "ByteLevel", **{name: _truth(draw) for name in ("add_prefix_space", "trim_offsets", "use_regex")}}


def _metaspace(draw: random.Random) -> dict[str, Any]:
    scheme = draw.choice(("always", "first", "never"))
    return {"type": "Metaspace", "replacement": draw.choice(TEXTS), "prepend_scheme": scheme, "split": _truth(draw)}


def _behavior(draw: random.Random) -> str:
    return draw.choice(("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"))


def _split(draw: random.Random) -> dict[str, Any]:
    return {"type": "Split", "pattern": _pattern(draw), "behavior": _behavior(draw), "invert": _truth(draw)}


def _punctuation(draw: random.Random) -> dict[str, Any]:
    return {"type": "Punctuation", "behavior": _behavior(draw)}


def _digits(draw: random.Random) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": _truth(draw)}


def _delimiter(draw: random.Random) -> dict[str, Any]:
    return {"type": "CharDelimiterSplit", "delimiter": draw.choice(TEXTS)}


def _fixed(draw: random.Random) -> dict[str, Any]:
    return {"type": "FixedLength", "length": draw.choice(NUMBERS)}


def _mark(draw: random.Random) -> list[Any]:
    return [draw.choice(PIECES), draw.choice((0, 1, 2, 14, *NUMBERS[:9]))]


def _framed(draw: random.Random) -> dict[str, Any]:
    kind = draw.choice(("BertProcessing", "RobertaProcessing"))
    own = {} if kind[0] == "B" else {"trim_offsets": True, "add_prefix_space": False}
    return {"type": kind, "sep": _mark(draw), "cls": _mark(draw), **own}


def _template(draw: random.Random) -> dict[str, Any]:
    def entries(names: str) -> list[Any]:
        texts = [{"Sequence": {"id": name, "type_id": 0}} for name in names * draw.choice((1, 1, 1, 2, 300))]
        marks = [{"SpecialToken": {"id": "m", "type_id": 1}}] * draw.choice((0, 1, 2, 200))
        return [*marks, *texts, *marks]

    ids = [draw.choice((0, 1, 5, *NUMBERS[:8]))] * draw.choice((0, 1, 1, 3, 500))
    special = {"m": {"id": "m", "ids": ids, "tokens": ["a"] * len(ids)}}
    pair = entries("AB")
    return {"type": "TemplateProcessing", "single": entries("A"), "pair": pair, "special_tokens": special}


def _strip_ends(draw: random.Random) -> dict[str, Any]:
    return {"type": "Strip", "content": draw.choice(TEXTS), "start": draw.choice(NUMBERS), "stop": draw.choice(NUMBERS)}


def _suffix(draw: random.Random) -> dict[str, Any]:
    return {"type": "BPEDecoder", "suffix": draw.choice(TEXTS)}


def _prefix(draw: random.Random) -> dict[str, Any]:
    return {"type": "WordPiece", "prefix": draw.choice(TEXTS), "cleanup": _truth(draw)}


def _ctc(draw: random.Random) -> dict[str, Any]:
    pad, between = draw.choice(TEXTS), draw.choice(TEXTS)
    return {"type": "CTC", "pad_token": pad, "word_delimiter_token": between, "cleanup": _truth(draw)}


_FORM = _plain("NFC", "NFD", "NFKC", "NFKD", "Nmt", "ByteLevel", "Lowercase", "StripAccents")
_WORDS = _plain("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")
SEQUENCES = {
    "normalizer": (
        (
            _replace,
            _replace,
            _bert,
            _strip,
            _prepend,
            _plain("NFC", "NFD", "NFKC", "NFKD", "Nmt", "ByteLevel"),
            _plain("Lowercase", "StripAccents"),
        ),
        "normalizers",
    ),
    "pre_tokenizer": (
        (
            _split,
            _split,
            _bytes,
            _metaspace,
            _punctuation,
            _digits,
            _delimiter,
            _fixed,
            _WORDS,
        ),
        "pretokenizers",
    ),
    "post_processor": ((_framed, _template, _template, _bytes), "processors"),
    "decoder": (
        (_replace, _strip_ends, _suffix, _prefix, _ctc, _metaspace, _bytes, _plain("Fuse", "ByteFallback")),
        "decoders",
    ),
}


def _vocabulary(draw: random.Random) -> dict[str, int]:
    more = [draw.choice((*TEXTS, "b" * 20_000)) for _ in range(draw.choice((0, 0, 1, 3)))]
    return {piece: i for i, piece in enumerate(dict.fromkeys([*PIECES, *more]))}


def _bpe(draw: random.Random) -> dict[str, Any]:
    optional = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    model = {name: draw.choice((None, None, *PIECES, *TEXTS)) for name in optional}
    merges = draw.choice(([], ["t h", "th e"], [["t", "h"], ["th", "e"]], [["a", "a"]]))
    flags = {name: _truth(draw) for name in ("fuse_unk", "byte_fallback", "ignore_merges")}
    dropout = draw.choice((None, None, 0.0, 0.5, 1.0, 2.0))
    return {"type": "BPE", "dropout": dropout, **model, **flags, "vocab": _vocabulary(draw), "merges": merges}


def _wordpiece(draw: random.Random) -> dict[str, Any]:
    model = {"unk_token": draw.choice(PIECES), "continuing_subword_prefix": draw.choice(("##", "##", *TEXTS))}
    longest = draw.choice((100, 100, *NUMBERS))
    return {"type": "WordPiece", **model, "max_input_chars_per_word": longest, "vocab": _vocabulary(draw)}


def _unigram(draw: random.Random) -> dict[str, Any]:
    pieces = [[piece, draw.choice((0.0, -1.0, -1e308, 1e308, 1e-300))] for piece in _vocabulary(draw)]
    unknown = draw.choice((None, 0, 1, 15, 99))
    return {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": _truth(draw)}


def _words(draw: random.Random) -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": _vocabulary(draw), "unk_token": draw.choice(PIECES)}


def _added(draw: random.Random, number: int) -> dict[str, Any]:
    flags = {name: _truth(draw) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return {
        "id": draw.choice((number, number, number, number, *NUMBERS)),
        "content": draw.choice((*PIECES, *TEXTS)),
        **flags,
    }


def _truncation(draw: random.Random) -> dict[str, Any] | None:
    if draw.random() < 0.7:
        return None
    strategy = draw.choice(("LongestFirst", "OnlyFirst", "OnlySecond"))
    length, stride = draw.choice(NUMBERS), draw.choice(NUMBERS[:4])
    return {"direction": "Left", "max_length": length, "strategy": strategy, "stride": stride}


def _padding(draw: random.Random) -> dict[str, Any] | None:
    if draw.random() < 0.7:
        return None
    strategy = draw.choice(("BatchLongest", {"Fixed": draw.choice(NUMBERS)}))
    multiple = draw.choice((None, *NUMBERS))
    own = {"pad_id": 0, "pad_type_id": 0, "pad_token": draw.choice(TEXTS)}
    return {"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, **own}
