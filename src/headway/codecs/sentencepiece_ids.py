"""The ids that model families assign to sentencepiece pieces: T5's sentinels, XLM-R's order, Marian's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from headway.codecs.bytepairs import read_vocabulary
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
from headway.codecs.special_tokens import MARIAN_FILES, STYLE_TOKENS, SpecialTokens
from headway.errors import UserError

SUPPORTED_STYLES = ("", "llama", "gemma", "t5", "xlmroberta", "siglip")
"""Supported styles."""

_MAX_SENTINELS = 1 << 12
_UNKNOWN_PENALTY = 10.0  # how far unknown characters score below the worst piece, as in sentencepiece


def read_sentencepiece(path: Path, style: str, settings: Mapping[str, Any]) -> tuple[Tokenizer, SpecialTokens]:
    """The tokenizer for a sentencepiece model, with ids as in `style`, and the style's special tokens."""
    if style not in SUPPORTED_STYLES:
        raise UserError(
            f"{path} belongs to a tokenizer with the unsupported class {style!r}; "
            "add its tokenizer.json next to it (transformers' save_pretrained writes one)"
        )
    pieces = read_pieces(path)
    unknown = None if pieces.unk_id is None else pieces.spellings[pieces.unk_id]
    special_tokens = STYLE_TOKENS.get(style) or SpecialTokens(
        bos=pieces.bos, eos=pieces.eos, unk=unknown, pad=pieces.pad
    )
    if style == "xlmroberta":
        pieces = _fairseq_order(pieces, path)
    # Until 2023, the prefix was added after every special token; newer tokenizers set `legacy` to false.
    tokenizer = build(pieces, path, prefix_once=settings.get("legacy") is False)
    if style == "t5":
        count = settings.get("extra_ids", 100)
        if not isinstance(count, int) or not 0 <= count <= _MAX_SENTINELS:
            raise UserError(f"extra_ids in {path} is {count!r}; set it to the number of sentinels, such as 100")
        names = [f"<extra_id_{i}>" for i in reversed(range(count))]
        missing = [name for name in names if tokenizer.token_to_id(name) is None]
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
    return tokenizer, special_tokens


def _fairseq_order(pieces: PieceTable, path: Path) -> PieceTable:
    """XLM-R's ids: special tokens in fairseq's order, with the mask after all pieces."""
    if list(pieces.spellings[:3]) != ["<unk>", "<s>", "</s>"]:
        raise UserError(
            f"{path} starts with {list(pieces.spellings[:3])}, not <unk>, <s>, </s> as in XLM-R; download it again"
        )
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    return replace(
        pieces,
        spellings=[*first, *pieces.spellings[3:], "<mask>"],
        scores=[*[0.0] * len(first), *pieces.scores[3:], 0.0],
        types=[CONTROL, CONTROL, CONTROL, UNKNOWN, *pieces.types[3:], CONTROL],
    )


def read_marian(directory: Path, side: str) -> Tokenizer:
    """The tokenizer for one language in a translation model.

    One vocabulary assigns ids to the pieces in two sentencepiece models, unless there is a target_vocab.json. The other
    language's pieces are never matched in a text, but can be decoded. Characters that only the other language has are
    matched. (The original matches single ones, but outputs an unknown token for two in a row.) Pieces that are missing
    from the vocabulary are not used: the word is split into other pieces, where the original outputs an unknown token.
    """
    model, vocabulary = (directory / name for name in MARIAN_FILES[side])
    if not vocabulary.is_file():
        vocabulary = directory / MARIAN_FILES["source"][1]
    ids = read_vocabulary(vocabulary)
    pieces, special_tokens = read_pieces(model), STYLE_TOKENS["marian"]
    size = max(ids.values()) + 1
    if size > 2 * len(ids):
        raise UserError(f"{vocabulary} has {len(ids)} tokens with ids up to {size - 1}; download it again")
    scores = dict(zip(pieces.spellings, pieces.scores, strict=True))
    unknown_score = min(pieces.scores) - _UNKNOWN_PENALTY
    scores.update((spelling, unknown_score) for spelling in ids if len(spelling) == 1 and spelling not in scores)
    spellings = [f"{HIDDEN}{i}" for i in range(size)]
    types = [UNUSED] * size
    for spelling, token_id in ids.items():
        special_types = {special_tokens.unk: UNKNOWN, special_tokens.eos: CONTROL, special_tokens.pad: CONTROL}
        spellings[token_id] = spelling
        types[token_id] = special_types.get(spelling, NORMAL if spelling in scores else UNUSED)
    numbered = replace(
        pieces, spellings=spellings, scores=[scores.get(spelling, 0.0) for spelling in spellings], types=types
    )
    codes = [spelling for spelling in spellings if spelling.startswith(">>") and spelling.endswith("<<")]
    return _with_language_codes(numbered, codes, model)


def _with_language_codes(pieces: PieceTable, codes: list[str], path: Path) -> Tokenizer:
    """Add language codes, which precede a text, as tokens that are matched anywhere."""
    types = [
        USER_DEFINED if spelling in codes else kind
        for spelling, kind in zip(pieces.spellings, pieces.types, strict=True)
    ]
    tokenizer = build(replace(pieces, types=types), path)
    tokenizer.add_tokens([AddedToken(code, special=False, normalized=False) for code in codes])
    return tokenizer
