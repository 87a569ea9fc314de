"""What a tokenizer.json says beside its vocabulary, which is nearly all of it and is not read for that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
_ENTRY = re.compile(r"\s*:\s*[\[{\"]")  # of a part, where a symbol of the vocabulary has a number
_LETTERS = ("\\u005", "\\u006", "\\u007")  # a name that is written in another way
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def outline(text: str) -> dict[str, Any]:
    """The entries of a tokenizer.json without its model. ValueError for what is none."""
    found: dict[str, Any] = {}
    at = _after("{", text, 0)
    while True:
        name, at = _DECODER.raw_decode(text, at)
        at = _after(":", text, at)
        if name == "model" and not _more(text, at):
            return found
        value, at = _DECODER.raw_decode(text, at)
        if name in found:
            raise ValueError(f"it has two entries named {name!r:.40}")
        found[name] = value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            break
        at = _after(",", text, at)
    found.pop("model", None)
    return found


def _after(mark: str, text: str, at: int) -> int:
    """The next place behind a mark, and behind white space around it."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] != mark:
        raise ValueError(f"it has {text[at : at + 20]!r} at {at} where {mark!r} is expected")
    return _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]


def _more(text: str, at: int) -> bool:
    """Whether an entry may stand behind a place, as far as that is seen without reading all."""
    if any(text.find(letter, at) >= 0 for letter in _LETTERS):
        return True
    for name in _PARTS:
        place = text.find(f'"{name}"', at)
        while place >= 0:
            if _ENTRY.match(text, place + len(name) + 2):
                return True
            place = text.find(f'"{name}"', place + 1)
    return False


def laid_open(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The patterns ("Regex") and maps ("precompiled_charsmap") in the steps of a tokenizer."""
    waiting: list[Any] = [parts.get(name) for name in _PARTS]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            for name in ("Regex", "precompiled_charsmap"):
                if isinstance(one.get(name), str):
                    yield name, one[name]
