"""Limits on tokenizers from untrusted files: the output may be at most a bounded multiple of the input."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer, models

from headway.codecs.chat_spans import RESERVED
from headway.errors import UserError

MAX_SPECIAL_TOKEN = 256  # maximum characters in a special token or the unknown token
MAX_TOKEN_LENGTH = 1 << 14  # maximum characters in a token
_MAX_UNIGRAM = 256  # maximum piece length for Unigram, which looks up every position up to this length
_MAX_PREFIXES = 64  # maximum prefixes per piece, because Unigram records each piece that matches
_MAX_WORD = 200  # maximum word length; WordPiece takes quadratic time. Google's BERT uses 200, published models 100
_MAX_GROWTH = 64  # output characters per input character
_MAX_REPORTED = 10**9  # larger numbers are capped in messages
_MAX_STEPS = 64
_MAX_ADDED = 256  # maximum special tokens around a text
MAX_MAPPED = 32  # maximum characters that a charsmap may replace one with; Unicode normalisation needs 18
_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")
_MATCHES_EMPTY = re.compile(r"[|*?^$(]|\{[0,]|\\[AbBGzZKyY]")  # patterns that may match an empty string


def check_special_tokens(names: Iterable[str], source: str) -> None:
    """Raise UserError for a special token that is too long or contains a noncharacter."""
    for name in names:
        if len(name) > MAX_SPECIAL_TOKEN:
            raise UserError(
                f"{source} has a special token of {len(name):,} characters ({name[:20]!r} ...), more than "
                f"{MAX_SPECIAL_TOKEN}; use another tokenizer"
            )
        if RESERVED.search(name):
            raise UserError(
                f"{source} has special token {name!r}, which contains a noncharacter; use another tokenizer"
            )


def check_pieces(tokenizer: Tokenizer, vocabulary: Iterable[str], source: str) -> None:
    """Raise UserError for vocabulary entries that take too long to look up because of their length."""
    model = tokenizer.model
    unigram = isinstance(model, models.Unigram)
    max_length = _MAX_UNIGRAM if unigram else MAX_TOKEN_LENGTH
    longest_length = max(map(len, vocabulary), default=0)
    if longest_length > max_length:
        kind = type(model).__name__
        raise UserError(
            f"{source} has a {kind} piece of {longest_length:,} characters, more than {max_length:,}; use another "
            "tokenizer"
        )
    if unigram and longest_length > _MAX_PREFIXES:
        pieces = frozenset(vocabulary)
        for piece in pieces:
            if len(piece) > _MAX_PREFIXES:
                prefix_count = sum(piece[:length] in pieces for length in range(1, len(piece)))
                if prefix_count > _MAX_PREFIXES:
                    raise UserError(
                        f"{source} has a piece with {prefix_count} other pieces as prefixes, more than "
                        f"{_MAX_PREFIXES}: {piece[:20]!r} ...; use another tokenizer"
                    )
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        value = getattr(model, name, None)
        if isinstance(value, str) and len(value) > MAX_SPECIAL_TOKEN:
            raise UserError(
                f"{source} has {name} of {len(value):,} characters, more than {MAX_SPECIAL_TOKEN}; use another "
                "tokenizer"
            )
    word = getattr(model, "max_input_chars_per_word", 0)
    if word > _MAX_WORD:
        raise UserError(
            f"max_input_chars_per_word in {source} is {word:,}, more than {_MAX_WORD}; set it to 100, as in BERT"
        )


def check_growth(tokenizer: Tokenizer, source: str) -> None:
    """Raise UserError if the normaliser, pre-tokenizer or decoder outputs much more text than it receives."""
    preparation_steps = [
        *_component_steps(tokenizer.normalizer, source),
        *_component_steps(tokenizer.pre_tokenizer, source),
    ]
    for steps, action in (
        (preparation_steps, "normalises text"),
        (_component_steps(tokenizer.decoder, source), "decodes"),
    ):
        growth = min(_max_growth(steps, source), _MAX_REPORTED)
        if growth > _MAX_GROWTH:
            raise UserError(
                f"{source} {action} so that one character may become {growth:,}, more than {_MAX_GROWTH}; use another "
                "tokenizer"
            )


def check_template(tokenizer: Tokenizer, source: str) -> None:
    """Raise UserError for a post-processor that adds too many or unknown tokens to a text, or repeats a text."""
    ids: list[int] = []
    for step in _component_steps(tokenizer.post_processor, source):
        if step["type"] in ("BertProcessing", "RobertaProcessing"):
            ids += [step["sep"][1], step["cls"][1]]
        for template in (step["single"], step["pair"]) if step["type"] == "TemplateProcessing" else ():
            text_ids = [entry["Sequence"]["id"] for entry in template if "Sequence" in entry]
            if len(set(text_ids)) < len(text_ids):
                raise UserError(
                    f"{source} has {len(text_ids)} texts in its template, one of them repeated; use another tokenizer"
                )
            names = [entry["SpecialToken"]["id"] for entry in template if "SpecialToken" in entry]
            for name in names[: 2 * _MAX_ADDED]:
                ids += step["special_tokens"][name]["ids"][: 2 * _MAX_ADDED]
    if len(ids) > _MAX_ADDED:
        raise UserError(
            f"{source} adds {len(ids):,} special tokens to each text (limit: {_MAX_ADDED}); use another tokenizer"
        )
    for i in set(ids):
        if tokenizer.id_to_token(i) is None:
            raise UserError(f"{source} adds token {i} to texts, but has no such token; download it again")


def _component_steps(component: Any, source: str) -> list[dict[str, Any]]:
    """The steps in a tokenizer component, as JSON."""
    steps = [] if component is None else list(_flatten_steps(json.loads(component.__getstate__())))
    if len(steps) > _MAX_STEPS:
        raise UserError(
            f"{source} has a sequence of {len(steps):,} steps, more than {_MAX_STEPS}; use another tokenizer"
        )
    return steps


def _flatten_steps(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((state[name] for name in _SEQUENCES if name in state), None)
    if inner is None:
        yield state
    for step in inner or ():
        yield from _flatten_steps(step)


def _max_growth(steps: list[dict[str, Any]], source: str) -> int:
    """The maximum number of characters that one character may become.

    Growth multiplies if a later replacement can match the output of an earlier one, but not if each matches only
    original characters.
    """
    product = max_single = 1
    inserted: set[str] | None = set()  # characters inserted by earlier steps; None if they may be any
    for step in steps:
        growth, only_original = 1, False
        match step["type"]:
            case "Replace":
                content, pattern = step["content"], step["pattern"]
                length, text = _normalized_length(content), pattern.get("String")
                if text is None:
                    growth = max(1, length + bool(length and _MATCHES_EMPTY.search(pattern["Regex"] or "?")))
                elif not text:
                    raise UserError(
                        f"{source} replaces an empty string, which matches everywhere; use another tokenizer"
                    )
                else:
                    growth = max(1, -(-length // len(text)))
                    only_original = inserted is not None and not inserted & set(text)
                has_combining = not content.isascii() and any(map(unicodedata.combining, content))
                inserted = None if inserted is None or has_combining else inserted | _normal_forms(content)
            case "Prepend":
                growth = 1 + _normalized_length(step["prepend"])
                inserted = None if inserted is None else inserted | _normal_forms(step["prepend"])
            case "ByteLevel":
                growth, inserted = 5 if step.get("add_prefix_space") else 4, None
            case "BertNormalizer":
                growth = 3  # spaces around Chinese characters
            case "Metaspace" | "WordPiece":
                growth = 2
            case "BPEDecoder":
                growth = 1 if step.get("suffix") else 2
            case "Precompiled":
                growth, inserted = 1 if product * max_single == 1 else MAX_MAPPED, None
            case "FixedLength" if not step["length"]:
                raise UserError(f"{source} splits text into chunks of length 0; use another tokenizer")
            case "Strip" if step.get("stop", 0) > 1:  # the library fails on shorter texts
                raise UserError(
                    f"{source} strips {step['stop']:,} characters from the end, more than 1; use another tokenizer"
                )
        product, max_single = (product, max(max_single, growth)) if only_original else (product * growth, max_single)
    return product * max_single


def _normalized_length(content: str) -> int:
    return max(len(content), len(unicodedata.normalize("NFKD", content.lower())))


def _normal_forms(content: str) -> set[str]:
    """The characters that a text may contain after case changes and Unicode normalisation."""
    strings = (content, content.lower())
    return set(
        "".join([*strings, *(unicodedata.normalize(form, text) for form in ("NFKD", "NFC") for text in strings)])
    )
