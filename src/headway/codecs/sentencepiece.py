"""sentencepiece models: their file, and the tokenizer that gives their ids.

The charsmap, which says what characters become which, is a trie in a double array:

    4 bytes: size of the array | the array, units of 4 bytes | texts, each ended by a zero byte

A unit holds the offset of its children, whether a key ends at it, and its own label, which is a byte; a unit that a key
leads to holds the place of a text. The library follows offsets and places unchecked, and ends the process's work
where they lead out of the map.

Unigram: Kudo 2018; BPE: Sennrich et al. 2016, merged by score as sentencepiece does.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headway.codecs.bounds import LONGEST_MAPPED
from headway.codecs.files import library_errors, read_bytes
from headway.errors import UserError

_VALUE, _LEAF = np.uint32(1 << 31), np.uint32(1 << 8)


def check_charsmap(data: bytes) -> None:
    """Raises ValueError where some text would lead out of the map."""
    size = int.from_bytes(data[:4], "little")
    if not size or size % 1024 or 4 + size > len(data):
        raise ValueError(f"its charsmap of {len(data)} bytes claims an array of {size}")
    units, texts = np.frombuffer(data, "<u4", size // 4, 4), data[4 + size :]
    if texts and texts[-1]:
        raise ValueError("the last text of its charsmap has no end")
    longest = max(map(len, texts.decode("utf-8").split("\0")))
    if longest > LONGEST_MAPPED:
        raise ValueError(f"its charsmap makes {longest:,} characters of one, {LONGEST_MAPPED} at most")
    nodes = np.flatnonzero(units < _VALUE)
    below = nodes ^ _offsets(units[nodes])
    if (below | 255 >= len(units)).any():
        raise ValueError("its charsmap leads out of its array")
    places = units[below[units[nodes] & _LEAF != 0]] & (_VALUE - 1)
    if (places >= len(texts)).any():
        raise ValueError("its charsmap leads out of its texts")
    if (np.frombuffer(texts, np.uint8)[places] & 0xC0 == 0x80).any():
        raise ValueError("its charsmap leads into the middle of a character")


def _offsets(units: np.ndarray) -> np.ndarray:
    """22 bits; large ones are multiples of 256 and say so by a bit."""
    return (units.astype(np.int64) >> 10) << np.where(units & 512, 8, 0)


_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_LONGEST = 10  # bytes of a varint


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values: a whole number, or the bytes of a text, a message, or a number of fixed size.

    Raises ValueError for what is no message.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_EIGHT, _FOUR):
            size = 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > end:
            raise ValueError(f"a field of {size} bytes at byte {at} of {end}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")


SPACE = "\u2581"  # how sentencepiece writes a space
WORDS = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
_WIDE_TILDE, _KEPT = "\uff5e", "\ufdd1"
HIDDEN = "\ufdd0"  # a noncharacter: before a piece, it keeps texts from ever meeting it
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
T = TypeVar("T", int, bytes)


@dataclass(frozen=True)
class PieceTable:
    """The content of a sentencepiece model: pieces by id, their scores and types, and how text is prepared."""

    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    kind: Literal["unigram", "bpe"]
    byte_fallback: bool = False
    dummy_prefix: bool = True  # a space before the text
    squeeze: bool = True  # spaces around the text go, several become one
    charsmap: bytes = b""
    rule: str = ""  # the name of what the charsmap does, such as nmt_nfkc
    begin: str | None = None
    end: str | None = None
    pad: str | None = None

    @property
    def unknown(self) -> int | None:
        return next((i for i, kind in enumerate(self.types) if kind == UNKNOWN), None)

    def of_type(self, kind: int) -> list[str]:
        return [text for text, own in zip(self.texts, self.types, strict=True) if own == kind]


def read_pieces(path: Path) -> PieceTable:
    """The model in a .model or .spm file."""
    try:
        return _parse(read_bytes(path))
    except (ValueError, TypeError, struct.error) as error:
        raise UserError(f"{path} is no sentencepiece model ({error}); download it again") from error


def _parse(data: bytes) -> PieceTable:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in fields(data):
        if number == 1:
            pieces.append(_piece(_typed(value, bytes)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(fields(_typed(value, bytes)))
    if not pieces:
        raise ValueError("it holds no pieces")
    kind = _KINDS.get(_typed(trainer.get(3, 1), int), "an unknown kind")
    if kind not in ("unigram", "bpe"):
        raise ValueError(f"its model is {kind}, and only unigram and bpe are read")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise ValueError("it writes spaces after words, or not at all, which is not read")
    texts, scores, types = zip(*pieces, strict=True)
    charsmap = _typed(normalizer.get(2, b""), bytes)
    if charsmap:
        check_charsmap(charsmap)
    return PieceTable(
        texts,
        scores,
        types,
        kind,
        byte_fallback=bool(trainer.get(35, 0)),
        dummy_prefix=bool(normalizer.get(3, 1)),
        squeeze=bool(normalizer.get(4, 1)),
        charsmap=charsmap,
        rule=_typed(normalizer.get(1, b""), bytes).decode("utf-8"),
        begin=_role(trainer, 41, 46, (1, b"<s>"), texts),
        end=_role(trainer, 42, 47, (2, b"</s>"), texts),
        pad=_role(trainer, 43, 48, (-1, b"<pad>"), texts),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    parts = dict(fields(data))
    text = _typed(parts.get(1, b""), bytes).decode("utf-8")
    (score,) = struct.unpack("<f", _typed(parts.get(2, bytes(4)), bytes))
    if not math.isfinite(score):
        raise ValueError(f"the score of piece {text!r} is {score}")
    return text, score, _typed(parts.get(3, NORMAL), int)


def _typed(value: int | bytes, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"a field holds a {type(value).__name__} where a {kind.__name__} is wanted")
    return value


def _role(trainer: dict[int, int | bytes], number: int, name: int, default: tuple[int, bytes], texts) -> str | None:
    """The spelling of a symbol with a role; a negative id, written in 64 bits, says that there is none."""
    own = _typed(trainer.get(number, default[0]), int)
    spelling = _typed(trainer.get(name, default[1]), bytes).decode("utf-8")
    return spelling if 0 <= own < 1 << 63 and spelling in texts else None


def build(pieces: PieceTable, source: Path | str, prefix_once: bool = False) -> Tokenizer:
    """The tokenizer of a sentencepiece model; control symbols and the unknown are its special symbols.

    The dummy prefix comes before every stretch of text between special symbols, or with `prefix_once` before the first
    alone. UserError where the pieces make no model.
    """
    with library_errors(Path(source)):
        tokenizer = Tokenizer(_unigram(pieces) if pieces.kind == "unigram" else _bpe(pieces))
        steps = _normalizer(pieces, prefix_once)
        if steps:
            tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
        splits = _pre_tokenizer(pieces, prefix_once)
        if splits:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)  # type: ignore[assignment]
        tokenizer.decoder = _decoder(pieces)
        special = [*pieces.of_type(UNKNOWN), *pieces.of_type(CONTROL)]
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        if _adds_user_defined(pieces):
            tokenizer.add_tokens([AddedToken(text, normalized=True) for text in pieces.of_type(USER_DEFINED)])
    return tokenizer


def _adds_user_defined(pieces: PieceTable) -> bool:
    """Where nothing is put before a text, symbols of the user can be tokens of their own; else a split finds them."""
    return pieces.kind == "bpe" and not pieces.dummy_prefix


def _unigram(pieces: PieceTable) -> models.Model:
    vocabulary = [
        (HIDDEN + text, 0.0) if kind == UNUSED else (text, score if kind == NORMAL else 0.0)
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.types, strict=True)
    ]
    return models.Unigram(vocabulary, pieces.unknown, pieces.byte_fallback)


def _bpe(pieces: PieceTable) -> models.Model:
    vocabulary = {text: i for i, text in reversed([*enumerate(pieces.texts)])}
    unknown = None if pieces.unknown is None else pieces.texts[pieces.unknown]
    return models.BPE(
        vocabulary,
        _merges(pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=pieces.byte_fallback,
        ignore_merges=bool(pieces.of_type(USER_DEFINED)) and not _adds_user_defined(pieces),
    )


def _merges(pieces: PieceTable) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first."""
    normal = {
        text: (-score, i)
        for i, (text, score, kind) in enumerate(zip(pieces.texts, pieces.scores, pieces.types, strict=True))
        if kind == NORMAL
    }
    found = [
        (rank, cut, text[:cut], text[cut:])
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _normalizer(pieces: PieceTable, prefix_once: bool) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps += [*_composed(pieces.rule), normalizers.Precompiled(pieces.charsmap)]
    if pieces.squeeze:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    if pieces.dummy_prefix and not prefix_once:
        steps.append(normalizers.Prepend(SPACE))
    return steps


def _composed(rule: str) -> list[normalizers.Normalizer]:
    """Steps after which the library's reading of a charsmap is sentencepiece's.

    Alone it loses a mark that stands on a character which the charsmap maps, and half of a line break in two
    characters. NFKC does first what the charsmaps of that name do, but for one character that nmt_nfkc keeps; of
    nmt_nfkc both halves of a line break are spaces.
    """
    if not rule.startswith(("nfkc", "nmt_nfkc")):
        return []
    nfkc: list[normalizers.Normalizer] = [normalizers.NFKC()]
    if not rule.startswith("nmt_"):
        return nfkc
    tilde = normalizers.Replace(_WIDE_TILDE, _KEPT), normalizers.Replace(_KEPT, _WIDE_TILDE)
    return [tilde[0], *nfkc, tilde[1], normalizers.Replace("\r\n", "  ")]


def _pre_tokenizer(pieces: PieceTable, prefix_once: bool) -> list[pre_tokenizers.PreTokenizer]:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pieces.dummy_prefix and prefix_once:
        steps.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
    whole = [] if _adds_user_defined(pieces) else sorted(pieces.of_type(USER_DEFINED), key=len, reverse=True)
    if whole:
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), "isolated"))
    if pieces.byte_fallback and pieces.kind == "unigram":  # a text may spell a byte's symbol, and must not give it
        steps.append(pre_tokenizers.Split(Regex("(?<=<)(?=0x[0-9A-F]{2}>)"), "isolated"))
    if SPACE in pieces.texts and not any(_SPANS.search(text) for text in pieces.of_type(NORMAL)):
        # No piece spans words, so words can be looked up alone, which the library remembers.
        steps.append(pre_tokenizers.Split(Regex(WORDS), "isolated"))
    return steps


_ALL = 1 << 20  # spaces; more than there are
_SPANS = re.compile(f"[^{SPACE}]{SPACE}")


def _decoder(pieces: PieceTable) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(HIDDEN, ""), decoders.Replace(SPACE, " ")]
    steps += [decoders.ByteFallback(), decoders.Fuse()] if pieces.byte_fallback else [decoders.Fuse()]
    if pieces.dummy_prefix or pieces.squeeze:
        steps.append(decoders.Strip(" ", _ALL if pieces.squeeze else 1, 0))
    return decoders.Sequence(steps)  # type: ignore[return-value]
