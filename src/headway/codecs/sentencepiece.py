"""sentencepiece models: parse the file, and build a tokenizer with the same ids.

The charsmap, which maps characters to their replacements, is a double-array trie:

    4 bytes: size of the array | the array, units of 4 bytes | strings, each terminated by a zero byte

A unit contains the offset of its children, whether a key ends there, and its label, a byte. A unit at the end of a key
contains the position of a string. The library follows offsets and positions without checking them, and panics if they
are outside the map.

Unigram: Kudo 2018; BPE: Sennrich et al. 2016, merged by score as sentencepiece does.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headway.codecs.languages import TOKENS_IN_ORDER, language_code
from headway.codecs.special_tokens import MARIAN_FILES, SOURCE_LANGUAGES, STYLE_TOKENS, SpecialTokens, listed_tokens
from headway.codecs.tokenizer_files import library_errors, read_bytes
from headway.codecs.tokenizer_limits import MAX_MAPPED
from headway.codecs.vocabularies import VOCABULARY, read_vocabulary
from headway.errors import UserError

_VALUE_BIT, _LEAF_BIT = np.uint32(1 << 31), np.uint32(1 << 8)


def check_charsmap(data: bytes) -> None:
    """Raises ValueError if any text would lead outside the map."""
    size = int.from_bytes(data[:4], "little")
    if not size or size % 1024 or 4 + size > len(data):
        raise ValueError(f"its charsmap of {len(data)} bytes declares an array of {size} bytes")
    units, strings = np.frombuffer(data, "<u4", size // 4, 4), data[4 + size :]
    if strings and strings[-1]:
        raise ValueError("the last string of its charsmap is not terminated")
    max_length = max(map(len, strings.decode("utf-8").split("\0")))
    if max_length > MAX_MAPPED:
        raise ValueError(f"its charsmap replaces one character with {max_length:,}, more than {MAX_MAPPED}")
    nodes = np.flatnonzero(units < _VALUE_BIT)
    offsets = (units[nodes].astype(np.int64) >> 10) << np.where(units[nodes] & 512, 8, 0)  # a flag: multiples of 256
    children = nodes ^ offsets
    if (children | 255 >= len(units)).any():
        raise ValueError("its charsmap has an offset outside its array")
    positions = units[children[units[nodes] & _LEAF_BIT != 0]] & (_VALUE_BIT - 1)
    if (positions >= len(strings)).any():
        raise ValueError("its charsmap has a position outside its strings")
    if (np.frombuffer(strings, np.uint8)[positions] & 0xC0 == 0x80).any():
        raise ValueError("its charsmap has a position in the middle of a character")


_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10  # bytes of a varint


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: field numbers with integers, or with the bytes of strings, messages and
    fixed-size numbers.

    Raises ValueError for an invalid message.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _read_varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if kind == _LENGTH_DELIMITED:
            size, position = _read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if position + size > end:
            raise ValueError(f"a field of {size} bytes at byte {position} of {end}")
        yield number, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(_MAX_VARINT):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position
    raise ValueError(f"an invalid varint at byte {position}")


SPACE = "\u2581"  # sentencepiece's character for a space
WORDS = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
_WIDE_TILDE, _TILDE_PLACEHOLDER = "\uff5e", "\ufdd1"
HIDDEN = "\ufdd0"  # a noncharacter before a piece, so that no text can match it
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
T = TypeVar("T", int, bytes)


@dataclass(frozen=True)
class PieceTable:
    """The content of a sentencepiece model: pieces by id, their scores and types, and text normalisation."""

    spellings: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    kind: Literal["unigram", "bpe"]
    byte_fallback: bool = False
    dummy_prefix: bool = True  # add a space before the text
    squeeze: bool = True  # strip the text and collapse spaces
    charsmap: bytes = b""
    rule: str = ""  # charsmap name, such as nmt_nfkc
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None

    @property
    def unk_id(self) -> int | None:
        return next((i for i, kind in enumerate(self.types) if kind == UNKNOWN), None)

    def of_type(self, kind: int) -> list[str]:
        return [spelling for spelling, piece_type in zip(self.spellings, self.types, strict=True) if piece_type == kind]


def read_pieces(path: Path) -> PieceTable:
    """The model in a .model or .spm file."""
    try:
        return _parse_model(read_bytes(path), str(path))
    except (ValueError, TypeError, struct.error) as error:
        raise UserError(f"{path} is not a sentencepiece model that can be read ({error}); download it again") from error


def _parse_model(data: bytes, source: str) -> PieceTable:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in read_fields(data):
        if number == 1:
            piece_fields = dict(read_fields(_check_field(value, bytes)))
            spelling = _check_field(piece_fields.get(1, b""), bytes).decode("utf-8")
            (score,) = struct.unpack("<f", _check_field(piece_fields.get(2, bytes(4)), bytes))
            if not math.isfinite(score):
                raise ValueError(f"the score of piece {spelling!r} is {score}")
            pieces.append((spelling, score, _check_field(piece_fields.get(3, NORMAL), int)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(read_fields(_check_field(value, bytes)))
    if not pieces:
        raise ValueError("it contains no pieces")
    kind = _KINDS.get(_check_field(trainer.get(3, 1), int))
    if kind is None:
        raise ValueError("its model is of an unknown kind")
    if kind not in ("unigram", "bpe"):
        raise UserError(f"{source} is a sentencepiece model of kind {kind!r}; use one of kind unigram or bpe")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise UserError(
            f"{source} puts spaces after words or keeps them as they are, which is not supported; use another model"
        )
    spellings, scores, types = zip(*pieces, strict=True)
    charsmap = _check_field(normalizer.get(2, b""), bytes)
    if charsmap:
        check_charsmap(charsmap)
    return PieceTable(
        spellings,
        scores,
        types,
        kind,
        byte_fallback=bool(trainer.get(35, 0)),
        dummy_prefix=bool(normalizer.get(3, 1)),
        squeeze=bool(normalizer.get(4, 1)),
        charsmap=charsmap,
        rule=_check_field(normalizer.get(1, b""), bytes).decode("utf-8"),
        bos=_special_spelling(trainer, 41, 46, (1, b"<s>"), spellings),
        eos=_special_spelling(trainer, 42, 47, (2, b"</s>"), spellings),
        pad=_special_spelling(trainer, 43, 48, (-1, b"<pad>"), spellings),
    )


def _check_field(value: int | bytes, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"a field contains a {type(value).__name__}, not a {kind.__name__}")
    return value


def _special_spelling(
    trainer: dict[int, int | bytes], number: int, name: int, default: tuple[int, bytes], spellings
) -> str | None:
    """The text of a special token; None if its id is negative (written in 64 bits)."""
    token_id = _check_field(trainer.get(number, default[0]), int)
    spelling = _check_field(trainer.get(name, default[1]), bytes).decode("utf-8")
    return spelling if 0 <= token_id < 1 << 63 and spelling in spellings else None


def build(pieces: PieceTable, source: Path | str, prefix_once: bool = False) -> Tokenizer:
    """The tokenizer for a sentencepiece model; control tokens and the unknown token are special.

    The dummy prefix is added before every segment of text between special tokens or, with `prefix_once`, only before
    the first. Raises UserError if the pieces do not form a model.
    """
    with library_errors(Path(source)):
        if pieces.kind == "unigram":
            vocabulary = [
                (HIDDEN + text, 0.0) if kind == UNUSED else (text, score if kind == NORMAL else 0.0)
                for text, score, kind in zip(pieces.spellings, pieces.scores, pieces.types, strict=True)
            ]
            tokenizer = Tokenizer(models.Unigram(vocabulary, pieces.unk_id, pieces.byte_fallback))
        else:
            tokenizer = Tokenizer(_bpe(pieces))
        steps: list[normalizers.Normalizer] = []
        if pieces.charsmap:
            steps += [*_charsmap_normalizers(pieces.rule), normalizers.Precompiled(pieces.charsmap)]
        if pieces.squeeze:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        steps.append(normalizers.Replace(" ", SPACE))
        if pieces.dummy_prefix and not prefix_once:
            steps.append(normalizers.Prepend(SPACE))
        if steps:
            tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
        splits: list[pre_tokenizers.PreTokenizer] = []
        if pieces.dummy_prefix and prefix_once:
            splits.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
        user_defined = [] if _adds_user_defined(pieces) else sorted(pieces.of_type(USER_DEFINED), key=len, reverse=True)
        if user_defined:
            splits.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, user_defined))), "isolated"))
        if pieces.byte_fallback and pieces.kind == "unigram":  # text that looks like a byte token must not become one
            splits.append(pre_tokenizers.Split(Regex("(?<=<)(?=0x[0-9A-F]{2}>)"), "isolated"))
        if SPACE in pieces.spellings and not any(_SPANS_WORDS.search(text) for text in pieces.of_type(NORMAL)):
            # No piece spans words, so words are looked up separately, and the library caches them.
            splits.append(pre_tokenizers.Split(Regex(WORDS), "isolated"))
        if splits:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)  # type: ignore[assignment]
        decoder_steps: list[decoders.Decoder] = [decoders.Replace(HIDDEN, ""), decoders.Replace(SPACE, " ")]
        decoder_steps += [decoders.ByteFallback(), decoders.Fuse()] if pieces.byte_fallback else [decoders.Fuse()]
        if pieces.dummy_prefix or pieces.squeeze:
            decoder_steps.append(decoders.Strip(" ", _MAX_SPACES if pieces.squeeze else 1, 0))
        tokenizer.decoder = decoders.Sequence(decoder_steps)  # type: ignore[assignment]
        special = [*pieces.of_type(UNKNOWN), *pieces.of_type(CONTROL)]
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        if _adds_user_defined(pieces):
            tokenizer.add_tokens([AddedToken(text, normalized=True) for text in pieces.of_type(USER_DEFINED)])
    return tokenizer


def _adds_user_defined(pieces: PieceTable) -> bool:
    """Whether user-defined pieces can be added tokens. This needs a model without a prefix; otherwise a split finds
    them.
    """
    return pieces.kind == "bpe" and not pieces.dummy_prefix


def _bpe(pieces: PieceTable) -> models.Model:
    vocabulary = {text: i for i, text in reversed([*enumerate(pieces.spellings)])}
    # All merges of two pieces into another, the best result first.
    normal = {
        text: (-score, i)
        for i, (text, score, kind) in enumerate(zip(pieces.spellings, pieces.scores, pieces.types, strict=True))
        if kind == NORMAL
    }
    merges = [
        (rank, cut, text[:cut], text[cut:])
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    unknown = None if pieces.unk_id is None else pieces.spellings[pieces.unk_id]
    return models.BPE(
        vocabulary,
        [(left, right) for _, _, left, right in sorted(merges)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=pieces.byte_fallback,
        ignore_merges=bool(pieces.of_type(USER_DEFINED)) and not _adds_user_defined(pieces),
    )


def _charsmap_normalizers(rule: str) -> list[normalizers.Normalizer]:
    """Normalisation steps before the charsmap that make the library match sentencepiece.

    On its own, the library loses combining marks on mapped characters, and half of a two-character line break. So NFKC
    is applied first. It does the same as these charsmaps, except for one character that nmt_nfkc keeps; with nmt_nfkc,
    both halves of a line break become spaces.
    """
    if not rule.startswith(("nfkc", "nmt_nfkc")):
        return []
    nfkc: list[normalizers.Normalizer] = [normalizers.NFKC()]
    if not rule.startswith("nmt_"):
        return nfkc
    tilde = normalizers.Replace(_WIDE_TILDE, _TILDE_PLACEHOLDER), normalizers.Replace(_TILDE_PLACEHOLDER, _WIDE_TILDE)
    return [tilde[0], *nfkc, tilde[1], normalizers.Replace("\r\n", "  ")]


_MAX_SPACES = 1 << 20  # spaces; more than any text starts with
_SPANS_WORDS = re.compile(f"[^{SPACE}]{SPACE}")


SUPPORTED_STYLES = ("", "llama", "gemma", "t5", "xlmroberta", "siglip", "debertav2", *SOURCE_LANGUAGES)
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
    languages = TOKENS_IN_ORDER.get("wmt21" if settings.get("language_codes") == "wmt21" else style, [])
    if style == "nllb":  # its files list the languages
        languages = [name for name in listed_tokens(settings) if language_code(name) is not None]
    if style == "m2m100":
        tokenizer = build(_numbered(pieces, path.with_name(VOCABULARY), special_tokens), path)
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in languages])
        return tokenizer, special_tokens
    if style == "xlmroberta" or languages:
        if list(pieces.spellings[:3]) != ["<unk>", "<s>", "</s>"]:
            raise UserError(
                f"{path} starts with {list(pieces.spellings[:3])}, not <unk>, <s>, </s> as in XLM-R; download it again"
            )
        first, last = ["<s>", "<pad>", "</s>", "<unk>"], [*languages, "<mask>"]
        pieces = replace(
            pieces,
            spellings=[*first, *pieces.spellings[3:], *last],
            scores=[*[0.0] * len(first), *pieces.scores[3:], *[0.0] * len(last)],
            types=[CONTROL, CONTROL, CONTROL, UNKNOWN, *pieces.types[3:], *[CONTROL] * len(last)],
        )
    # Until 2023, the prefix was added after every special token; newer tokenizers set `legacy` to false.
    tokenizer = build(pieces, path, prefix_once=settings.get("legacy") is False)
    if style == "t5":
        count = settings.get("extra_ids", 100)
        if not isinstance(count, int) or not 0 <= count <= _MAX_SENTINELS:
            raise UserError(
                f"extra_ids is {count!r} in the settings next to {path}; set it to the number of sentinels, such as 100"
            )
        names = [f"<extra_id_{i}>" for i in reversed(range(count))]
        missing = [name for name in names if tokenizer.token_to_id(name) is None]
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
    if style == "debertav2":  # the mask token follows the pieces
        for name in ("do_lower_case", "split_by_punct"):
            if settings.get(name):
                raise UserError(
                    f"the settings next to {path} have {name} true, which is not supported; add a tokenizer.json"
                )
        tokenizer.add_special_tokens([AddedToken("[MASK]", special=True, normalized=False)])
    return tokenizer, special_tokens


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
    pieces = _numbered(read_pieces(model), vocabulary, STYLE_TOKENS["marian"])
    codes = [spelling for spelling in pieces.spellings if spelling.startswith(">>") and spelling.endswith("<<")]
    # Language codes, which precede a text, are matched anywhere.
    types = [USER_DEFINED if text in codes else kind for text, kind in zip(pieces.spellings, pieces.types, strict=True)]
    tokenizer = build(replace(pieces, types=types), model)
    tokenizer.add_tokens([AddedToken(code, special=False, normalized=False) for code in codes])
    return tokenizer


def _numbered(pieces: PieceTable, vocabulary: Path, special_tokens: SpecialTokens) -> PieceTable:
    """`pieces` with the ids of a vocabulary, some of whose tokens may not be pieces of this model."""
    ids = read_vocabulary(vocabulary)
    size = max(ids.values()) + 1
    if size > 2 * len(ids):
        raise UserError(f"{vocabulary} has {len(ids)} tokens with ids up to {size - 1}; download it again")
    scores = dict(zip(pieces.spellings, pieces.scores, strict=True))
    unknown_score = min(pieces.scores) - _UNKNOWN_PENALTY
    scores.update((spelling, unknown_score) for spelling in ids if len(spelling) == 1 and spelling not in scores)
    spellings = [f"{HIDDEN}{i}" for i in range(size)]
    types = [UNUSED] * size
    special_types = {**dict.fromkeys(special_tokens.settings().values(), CONTROL), special_tokens.unk: UNKNOWN}
    for spelling, token_id in ids.items():
        spellings[token_id] = spelling
        types[token_id] = special_types.get(spelling, NORMAL if spelling in scores else UNUSED)
    return replace(
        pieces, spellings=spellings, scores=[scores.get(spelling, 0.0) for spelling in spellings], types=types
    )
