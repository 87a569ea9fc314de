"""Read a tokenizer.json without its vocabulary, which is nearly all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from headway.parsing import DECODER

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "truncation", "padding", "model")
_NEXT = re.compile(r'\}\s*,\s*"((?:[^"\\]|\\.)*)"\s*:')
_BRACES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_PREFIX, _TEXT = '"continuing_subword_prefix"', re.compile(r'\s*:\s*"[^"]')


def outline(text: str) -> dict[str, Any]:
    """The entries of a tokenizer.json, without its model if that comes last. ValueError for an invalid file."""
    found: dict[str, Any] = {}
    at = _after("{", text, 0)
    while True:
        name, at = DECODER.raw_decode(text, at)
        at = _after(":", text, at)
        if name == "model" and not _more(text, at) and not _prefixed(text, at):
            return found
        value, at = DECODER.raw_decode(text, at)
        if name in found:
            raise ValueError(f"it has two entries named {name!r:.40}")
        found[name] = value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            break
        at = _after(",", text, at)
    return found


def _after(mark: str, text: str, at: int) -> int:
    """The position after a character and the white space around it."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] != mark:
        raise ValueError(f"it has {text[at : at + 20]!r} at {at} where {mark!r} is expected")
    return _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]


def _more(text: str, at: int) -> bool:
    """Whether a relevant entry follows the model: it would come after a closing brace."""
    place = at
    for _ in range(_BRACES):
        place = text.find("}", place)
        if place < 0:
            return False
        entry = _NEXT.match(text, place)
        if entry and (entry[1] in _PARTS or "\\" in entry[1]):
            return True
        place += 1
    return True  # possibly, so everything is read


def _prefixed(text: str, at: int) -> bool:
    """Whether a model may have both merges and a prefix of inner tokens."""
    place = text.find(_PREFIX, at)
    said = place >= 0 and _TEXT.match(text, place + len(_PREFIX)) is not None
    return said and text.find('"merges"', at) >= 0


def check_merges(model: Any) -> None:
    """ValueError for a BPE with a prefix of inner tokens and a merge without it, for which the library panics."""
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    for merge in model.get("merges") or () if prefix else ():
        second = merge.partition(" ")[2] if isinstance(merge, str) else merge[1]
        if not second.startswith(str(prefix)):
            raise ValueError(f"it merges {second!r:.40}, which does not start with {prefix!r:.40}")


def laid_open(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All patterns ("Regex") and maps ("precompiled_charsmap") in the steps of a tokenizer."""
    waiting: list[Any] = [part for name, part in parts.items() if name != "model"]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            for name in ("Regex", "precompiled_charsmap"):
                if isinstance(one.get(name), str):
                    yield name, one[name]
