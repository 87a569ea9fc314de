"""The ids that model families assign to sentencepiece pieces: T5's sentinels, XLM-R's order, Marian's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from headway.codecs.bytepairs import read_vocabulary
from headway.codecs.marks import MARKS, SIDES, RoleTokens
from headway.codecs.sentencepiece import (
    CONTROL,
    HIDDEN,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceTable,
    build,
    read_pieces,
)
from headway.errors import UserError

READ = ("", "llama", "gemma", "t5", "xlmroberta", "siglip")
"""Supported styles."""

_MOST_SENTINELS = 1 << 12
_UNKNOWN = 10.0  # score penalty of unknown characters below the worst piece, as in sentencepiece


def read_sentencepiece(path: Path, style: str, settings: Mapping[str, Any]) -> tuple[Tokenizer, RoleTokens]:
    """The tokenizer of a sentencepiece model with the ids of `style`, and the style's special tokens."""
    if style not in READ:
        raise UserError(
            f"{path} belongs to a tokenizer of the unsupported class {style!r}; "
            "add its tokenizer.json next to it (transformers' save_pretrained writes one)"
        )
    pieces = read_pieces(path)
    unknown = None if pieces.unknown is None else pieces.texts[pieces.unknown]
    marks = MARKS.get(style) or RoleTokens(bos=pieces.begin, eos=pieces.end, unk=unknown, pad=pieces.pad)
    if style == "xlmroberta":
        pieces = _fairseq(pieces, path)
    # Until 2023, the prefix was added after every special token; newer tokenizers set `legacy` to false.
    tokenizer = build(pieces, path, prefix_once=settings.get("legacy") is False)
    if style == "t5":
        count = settings.get("extra_ids", 100)
        if not isinstance(count, int) or not 0 <= count <= _MOST_SENTINELS:
            raise UserError(f"extra_ids of {path} is {count!r}; set a number of sentinels, such as 100")
        names = [f"<extra_id_{i}>" for i in reversed(range(count))]
        missing = [name for name in names if tokenizer.token_to_id(name) is None]
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
    return tokenizer, marks


def _fairseq(pieces: PieceTable, path: Path) -> PieceTable:
    """XLM-R's ids: special tokens in fairseq's order, and the mask after all pieces."""
    if list(pieces.texts[:3]) != ["<unk>", "<s>", "</s>"]:
        raise UserError(
            f"{path} starts with {list(pieces.texts[:3])}, not with <unk>, <s>, </s> as in XLM-R; download it again"
        )
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    return replace(
        pieces,
        texts=[*first, *pieces.texts[3:], "<mask>"],
        scores=[*[0.0] * len(first), *pieces.scores[3:], 0.0],
        types=[CONTROL, CONTROL, CONTROL, UNKNOWN, *pieces.types[3:], CONTROL],
    )


def read_marian(directory: Path, side: str) -> Tokenizer:
    """The tokenizer of one language of a translation model.

    One vocabulary assigns ids to the pieces of two sentencepiece models, unless there is a target_vocab.json. Pieces of
    the other language are never matched in a text, but can be decoded. Characters that only the other language has are
    matched (the original matches single ones, and outputs an unknown token for two in a row). Pieces that are not in
    the vocabulary are not used: other pieces spell the word, where the original outputs an unknown token.
    """
    model, vocabulary = (directory / name for name in SIDES[side])
    if not vocabulary.is_file():
        vocabulary = directory / SIDES["source"][1]
    ids = read_vocabulary(vocabulary)
    pieces, marks = read_pieces(model), MARKS["marian"]
    size = max(ids.values()) + 1
    if size > 2 * len(ids):
        raise UserError(f"{vocabulary} has {len(ids)} tokens with ids up to {size - 1}; download it again")
    scores = dict(zip(pieces.texts, pieces.scores, strict=True))
    rare = min(pieces.scores) - _UNKNOWN
    scores.update((text, rare) for text in ids if len(text) == 1 and text not in scores)
    texts = [f"{HIDDEN}{i}" for i in range(size)]
    types = [UNUSED] * size
    for text, number in ids.items():
        special = {marks.unk: UNKNOWN, marks.eos: CONTROL, marks.pad: CONTROL}
        texts[number] = text
        types[number] = special.get(text, NORMAL if text in scores else UNUSED)
    numbered = replace(pieces, texts=texts, scores=[scores.get(text, 0.0) for text in texts], types=types)
    codes = [text for text in texts if text.startswith(">>") and text.endswith("<<")]
    return _with_codes(numbered, codes, model)


def _with_codes(pieces: PieceTable, codes: list[str], path: Path) -> Tokenizer:
    """Add language codes, which precede a text, as tokens that are matched anywhere."""
    types = [USER_DEFINED if text in codes else kind for text, kind in zip(pieces.texts, pieces.types, strict=True)]
    tokenizer = build(replace(pieces, types=types), path)
    tokenizer.add_tokens([AddedToken(code, special=False, normalized=False) for code in codes])
    return tokenizer
