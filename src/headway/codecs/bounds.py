"""What a tokenizer may make of a text: no more than a factor of what comes in, whatever its files say."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer, models

from headway.codecs.guard import RESERVED
from headway.errors import UserError

LONGEST_MARK = 256  # characters of a special symbol, and of what stands for the unknown
LONGEST_PIECE = 1 << 14  # characters
_LONGEST_UNIGRAM = 256  # every place of a text is looked up to this length,
_PREFIXES = 64  # and takes a note of each piece that it finds
_LONGEST_WORD = 200  # characters; WordPiece takes the square of it. Google's BERT has 200, the published ones 100
_GROWTH = 64  # characters made of one
_MOST = 10**9  # that is told
_STEPS = 64
_MARKS = 256  # symbols around a text
LONGEST_MAPPED = 32  # characters that a charsmap may make of one; Unicode's own forms have 18
_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")
_EMPTY = re.compile(r"[|*?^$(]|\{[0,]|\\[AbBGzZKyY]")  # of patterns that may find a place between characters


def check_marks(names: Iterable[str], source: str) -> None:
    """UserError for a special symbol that is too long, or that no text can hold."""
    for name in names:
        if len(name) > LONGEST_MARK:
            raise UserError(
                f"{source} has a special symbol of {len(name):,} characters ({name[:20]!r} ...), {LONGEST_MARK} at "
                "most; use another tokenizer"
            )
        if RESERVED.search(name):
            raise UserError(f"{source} has the special symbol {name!r}, which holds a noncharacter; use another")


def check_pieces(tokenizer: Tokenizer, vocabulary: Iterable[str], source: str) -> None:
    """UserError for pieces that are longer than their kind of model can look up in time."""
    model = tokenizer.model
    unigram = isinstance(model, models.Unigram)
    most = _LONGEST_UNIGRAM if unigram else LONGEST_PIECE
    longest = max(map(len, vocabulary), default=0)
    if longest > most:
        kind = type(model).__name__
        raise UserError(f"{source} has a {kind} piece of {longest:,} characters, {most:,} at most; use another")
    if unigram and longest > _PREFIXES:
        _check_prefixes(frozenset(vocabulary), source)
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        value = getattr(model, name, None)
        if isinstance(value, str) and len(value) > LONGEST_MARK:
            raise UserError(
                f"{source} has {name} of {len(value):,} characters, {LONGEST_MARK} at most; use another tokenizer"
            )
    word = getattr(model, "max_input_chars_per_word", 0)
    if word > _LONGEST_WORD:
        raise UserError(
            f"max_input_chars_per_word of {source} is {word:,}, {_LONGEST_WORD} at most; set it to 100 as BERT's"
        )


def _check_prefixes(pieces: frozenset[str], source: str) -> None:
    for piece in pieces:
        if len(piece) > _PREFIXES:
            found = sum(piece[:length] in pieces for length in range(1, len(piece)))
            if found > _PREFIXES:
                raise UserError(
                    f"{source} has a piece that begins with {found} others, {_PREFIXES} at most: {piece[:20]!r} ...; "
                    "use another tokenizer"
                )


def check_growth(tokenizer: Tokenizer, source: str) -> None:
    """UserError where normaliser, pre-tokenizer or decoder make far more than they are given."""
    prepares = [*_steps(tokenizer.normalizer, source), *_steps(tokenizer.pre_tokenizer, source)]
    for steps, what in ((prepares, "prepares texts"), (_steps(tokenizer.decoder, source), "decodes")):
        made = min(_growth(steps, source), _MOST)
        if made > _GROWTH:
            raise UserError(
                f"{source} {what} so that one character becomes {made:,}, {_GROWTH} at most; use another tokenizer"
            )


def check_frame(tokenizer: Tokenizer, source: str) -> None:
    """UserError for a post-processor that puts too many symbols around texts, symbols that are none, or texts twice."""
    ids = [i for step in _steps(tokenizer.post_processor, source) for i in _around(step, source)]
    if len(ids) > _MARKS:
        raise UserError(f"{source} puts {len(ids):,} symbols around texts, {_MARKS} at most; use another tokenizer")
    for i in set(ids):
        if tokenizer.id_to_token(i) is None:
            raise UserError(f"{source} puts symbol {i} around texts, and has no such symbol; download it again")


def _steps(part: Any, source: str) -> list[dict[str, Any]]:
    """The JSON of a tokenizer's part as its steps, one after the other."""
    found = [] if part is None else list(_flat(json.loads(part.__getstate__())))
    if len(found) > _STEPS:
        raise UserError(f"{source} takes {len(found):,} steps in a row, {_STEPS} at most; use another tokenizer")
    return found


def _flat(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((state[name] for name in _SEQUENCES if name in state), None)
    if inner is None:
        yield state
    for step in inner or ():
        yield from _flat(step)


def _growth(steps: list[dict[str, Any]], source: str) -> int:
    """How many characters one may become, at most.

    Texts that replace others multiply where a later pattern can find what an earlier one has put there, and do not
    where each only finds what was there before.
    """
    product = alone = 1
    put: set[str] | None = set()  # characters that steps have put in; None where they may be any
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
                raise UserError(f"{source} cuts texts into pieces of length 0; use another tokenizer")
            case "Strip" if step.get("stop", 0) > 1:  # the library fails on texts that are shorter
                raise UserError(f"{source} strips {step['stop']:,} characters of an end, 1 at most; use another")
        product, alone = (product, max(alone, made)) if own else (product * made, alone)
    return product * alone


def _replaced(step: Mapping[str, Any], put: set[str] | None, source: str) -> tuple[int, bool]:
    """What one character becomes, and whether it is one that was in the text from the beginning."""
    width, pattern = _width(step["content"]), step["pattern"]
    text = pattern.get("String")
    if text is None:
        return max(1, width + bool(width and _EMPTY.search(pattern["Regex"] or "?"))), False
    if not text:
        raise UserError(f"{source} replaces an empty text, which is everywhere; use another tokenizer")
    return max(1, -(-width // len(text))), put is not None and not put & set(text)


def _width(content: str) -> int:
    return max(len(content), len(unicodedata.normalize("NFKD", content.lower())))


def _forms(content: str) -> set[str]:
    """The characters that a text may become by case and Unicode's normal forms."""
    texts = (content, content.lower())
    return set("".join([*texts, *(unicodedata.normalize(form, text) for form in ("NFKD", "NFC") for text in texts)]))


def _around(step: Mapping[str, Any], source: str) -> list[int]:
    """The symbols that a post-processor puts around one text, and around two."""
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return [step["sep"][1], step["cls"][1]]
    if step["type"] != "TemplateProcessing":
        return []
    ids: list[int] = []
    for form in (step["single"], step["pair"]):
        texts = [entry["Sequence"]["id"] for entry in form if "Sequence" in entry]
        if len(set(texts)) < len(texts):
            raise UserError(f"{source} puts {len(texts)} texts between its symbols, one twice; use another tokenizer")
        names = [entry["SpecialToken"]["id"] for entry in form if "SpecialToken" in entry]
        for name in names[: 2 * _MARKS]:
            ids += step["special_tokens"][name]["ids"][: 2 * _MARKS]
    return ids
