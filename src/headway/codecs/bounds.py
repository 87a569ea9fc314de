"""Limits on tokenizers from untrusted files: the output may only be a bounded multiple of the input."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer, models

from headway.codecs.guard import RESERVED
from headway.errors import UserError

LONGEST_MARK = 256  # characters of a special token or the unknown token
LONGEST_PIECE = 1 << 14  # characters
_LONGEST_UNIGRAM = 256  # Unigram looks up every position of a text to this length
_PREFIXES = 64  # and records each piece that matches
_LONGEST_WORD = 200  # characters; WordPiece is quadratic in it. Google's BERT has 200, published models 100
_GROWTH = 64  # output characters per input character
_MOST = 10**9  # maximum in messages
_STEPS = 64
_MARKS = 256  # special tokens around a text
LONGEST_MAPPED = 32  # characters that a charsmap may replace one by; Unicode's own forms have 18
_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")
_EMPTY = re.compile(r"[|*?^$(]|\{[0,]|\\[AbBGzZKyY]")  # patterns that may match an empty string


def check_marks(names: Iterable[str], source: str) -> None:
    """UserError for a special token that is too long or contains a noncharacter."""
    for name in names:
        if len(name) > LONGEST_MARK:
            raise UserError(
                f"{source} has a special token of {len(name):,} characters ({name[:20]!r} ...), more than "
                f"{LONGEST_MARK}; use another tokenizer"
            )
        if RESERVED.search(name):
            raise UserError(
                f"{source} has the special token {name!r}, which contains a noncharacter; use another tokenizer"
            )


def check_pieces(tokenizer: Tokenizer, vocabulary: Iterable[str], source: str) -> None:
    """UserError for vocabulary entries that are too long for the model to look up in time."""
    model = tokenizer.model
    unigram = isinstance(model, models.Unigram)
    most = _LONGEST_UNIGRAM if unigram else LONGEST_PIECE
    longest = max(map(len, vocabulary), default=0)
    if longest > most:
        kind = type(model).__name__
        raise UserError(
            f"{source} has a {kind} piece of {longest:,} characters, more than {most:,}; use another tokenizer"
        )
    if unigram and longest > _PREFIXES:
        _check_prefixes(frozenset(vocabulary), source)
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        value = getattr(model, name, None)
        if isinstance(value, str) and len(value) > LONGEST_MARK:
            raise UserError(
                f"{source} has {name} of {len(value):,} characters, more than {LONGEST_MARK}; use another tokenizer"
            )
    word = getattr(model, "max_input_chars_per_word", 0)
    if word > _LONGEST_WORD:
        raise UserError(
            f"max_input_chars_per_word of {source} is {word:,}, more than {_LONGEST_WORD}; set it to 100, as in BERT"
        )


def _check_prefixes(pieces: frozenset[str], source: str) -> None:
    for piece in pieces:
        if len(piece) > _PREFIXES:
            found = sum(piece[:length] in pieces for length in range(1, len(piece)))
            if found > _PREFIXES:
                raise UserError(
                    f"{source} has a piece with {found} other pieces as prefixes, more than {_PREFIXES}: "
                    f"{piece[:20]!r} ...; use another tokenizer"
                )


def check_growth(tokenizer: Tokenizer, source: str) -> None:
    """UserError if the normaliser, pre-tokenizer or decoder produces much more text than it gets."""
    prepares = [*_steps(tokenizer.normalizer, source), *_steps(tokenizer.pre_tokenizer, source)]
    for steps, what in ((prepares, "normalises text"), (_steps(tokenizer.decoder, source), "decodes")):
        made = min(_growth(steps, source), _MOST)
        if made > _GROWTH:
            raise UserError(
                f"{source} {what} so that one character becomes {made:,}, more than {_GROWTH}; use another tokenizer"
            )


def check_frame(tokenizer: Tokenizer, source: str) -> None:
    """UserError for a post-processor that adds too many or unknown tokens to a text, or repeats a text."""
    ids = [i for step in _steps(tokenizer.post_processor, source) for i in _around(step, source)]
    if len(ids) > _MARKS:
        raise UserError(
            f"{source} adds {len(ids):,} special tokens to a text, more than {_MARKS}; use another tokenizer"
        )
    for i in set(ids):
        if tokenizer.id_to_token(i) is None:
            raise UserError(f"{source} adds token {i} to texts, but has no such token; download it again")


def _steps(part: Any, source: str) -> list[dict[str, Any]]:
    """The steps of a tokenizer's component, as JSON."""
    found = [] if part is None else list(_flat(json.loads(part.__getstate__())))
    if len(found) > _STEPS:
        raise UserError(f"{source} has {len(found):,} steps in sequence, more than {_STEPS}; use another tokenizer")
    return found


def _flat(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((state[name] for name in _SEQUENCES if name in state), None)
    if inner is None:
        yield state
    for step in inner or ():
        yield from _flat(step)


def _growth(steps: list[dict[str, Any]], source: str) -> int:
    """The maximum number of characters that one character may become.

    The growth of replacements multiplies if a later pattern can match the output of an earlier one; it does not if each
    matches only original characters.
    """
    product = alone = 1
    put: set[str] | None = set()  # characters that steps have inserted; None if they may be any
    for step in steps:
        made, own = 1, False
        match step["type"]:
            case "Replace":
                made, own = _replaced(step, put, source)
                content = step["content"]
                strange = not content.isascii() and any(map(unicodedata.combining, content))
                put = None if put is None or strange else put | _forms(content)
            case "Prepend":
                made = 1 + _width(step["prepend"])
                put = None if put is None else put | _forms(step["prepend"])
            case "ByteLevel":
                made, put = 5 if step.get("add_prefix_space") else 4, None
            case "BertNormalizer":
                made = 3  # spaces around Chinese characters
            case "Metaspace" | "WordPiece":
                made = 2
            case "BPEDecoder":
                made = 1 if step.get("suffix") else 2
            case "Precompiled":
                made, put = 1 if product * alone == 1 else LONGEST_MAPPED, None
            case "FixedLength" if not step["length"]:
                raise UserError(f"{source} splits text into chunks of length 0; use another tokenizer")
            case "Strip" if step.get("stop", 0) > 1:  # the library fails on shorter texts
                raise UserError(
                    f"{source} strips {step['stop']:,} characters from the end, more than 1; use another tokenizer"
                )
        product, alone = (product, max(alone, made)) if own else (product * made, alone)
    return product * alone


def _replaced(step: Mapping[str, Any], put: set[str] | None, source: str) -> tuple[int, bool]:
    """How many characters one becomes, and whether only original characters are replaced."""
    width, pattern = _width(step["content"]), step["pattern"]
    text = pattern.get("String")
    if text is None:
        return max(1, width + bool(width and _EMPTY.search(pattern["Regex"] or "?"))), False
    if not text:
        raise UserError(f"{source} replaces an empty string, which matches everywhere; use another tokenizer")
    return max(1, -(-width // len(text))), put is not None and not put & set(text)


def _width(content: str) -> int:
    return max(len(content), len(unicodedata.normalize("NFKD", content.lower())))


def _forms(content: str) -> set[str]:
    """The characters that a text may contain after changes of case and Unicode normalisation."""
    texts = (content, content.lower())
    return set("".join([*texts, *(unicodedata.normalize(form, text) for form in ("NFKD", "NFC") for text in texts)]))


def _around(step: Mapping[str, Any], source: str) -> list[int]:
    """The ids that a post-processor adds to one text, and to a pair."""
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return [step["sep"][1], step["cls"][1]]
    if step["type"] != "TemplateProcessing":
        return []
    ids: list[int] = []
    for form in (step["single"], step["pair"]):
        texts = [entry["Sequence"]["id"] for entry in form if "Sequence" in entry]
        if len(set(texts)) < len(texts):
            raise UserError(
                f"{source} has {len(texts)} texts in its template, one of them twice; use another tokenizer"
            )
        names = [entry["SpecialToken"]["id"] for entry in form if "SpecialToken" in entry]
        for name in names[: 2 * _MARKS]:
            ids += step["special_tokens"][name]["ids"][: 2 * _MARKS]
    return ids
