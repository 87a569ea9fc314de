"""Byte-pair merging by the score of the merged piece: the tokenizer of Llama, llama2.c and sentencepiece's BPE.

Of all pairs of neighbours whose joined text is a piece, the one of the highest score is joined, until there is none.
Characters without a piece become their bytes, as the pieces <0x00> to <0xFF>.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from headway.codecs.tokenizer import TokenizerCodec
from headway.errors import UserError

SPACE = "\u2581"  # how published pieces write a space
LONGEST_PIECE = 1000  # characters; the longest of any vocabulary that is known have some hundred


def scored_codec(
    pieces: Sequence[tuple[str, float]],
    *,
    space: str = SPACE,
    prefix: bool = True,
    unknown: str | None = None,
    special: Collection[str] = (),
    whole: Collection[str] = (),
) -> TokenizerCodec:
    """The codec of pieces with scores, the place of each its id.

    `prefix` puts a space before a text, as before any other word. `special` are marks that decoding skips; `whole` are
    pieces that are found in a text before all others. Raises UserError for pieces that cannot be a vocabulary.
    """
    ids = _checked(pieces)
    merges = _merges(pieces, ids)
    fallback = "<0x00>" in ids
    model = models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)
    tokenizer = Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(space)] if prefix else []
    undo: list[decoders.Decoder] = [decoders.ByteFallback(), decoders.Fuse()]
    if space != " ":
        steps.append(normalizers.Replace(" ", space))
        undo.insert(0, decoders.Replace(space, " "))
    if prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[arg-type]
    tokenizer.decoder = decoders.Sequence(undo)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in whole])
    return TokenizerCodec(tokenizer)


def _checked(pieces: Sequence[tuple[str, float]]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, (piece, score) in enumerate(pieces):
        if not piece or len(piece) > LONGEST_PIECE:
            raise UserError(f"piece {i} has {len(piece)} characters; a vocabulary's have 1 to {LONGEST_PIECE}")
        if score != score:
            raise UserError(f"piece {i} ({piece!r}) has no number as its score; get the vocabulary again")
        if piece in ids:
            raise UserError(f"pieces {ids[piece]} and {i} are both {piece!r}; get the vocabulary again")
        ids[piece] = i
    if not ids:
        raise UserError("a vocabulary of 0 pieces has nothing to write texts with; get the vocabulary again")
    return ids


def _merges(pieces: Sequence[tuple[str, float]], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs whose joined text is a piece, that of the highest score first."""
    ranked = sorted(range(len(pieces)), key=lambda i: -pieces[i][1])
    found = []
    for i in ranked:
        piece = pieces[i][0]
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((left, right))
    return found
