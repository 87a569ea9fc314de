"""Read a tokenizer.json without its vocabulary, which makes up nearly all of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from headway.parsing import DECODER

_RELEVANT_ENTRIES = (
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "added_tokens",
    "truncation",
    "padding",
    "model",
)
_NEXT_ENTRY = re.compile(r'\}\s*,\s*"((?:[^"\\]|\\.)*)"\s*:')
_MAX_BRACES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_PREFIX, _NON_EMPTY = '"continuing_subword_prefix"', re.compile(r'\s*:\s*"[^"]')


def read_without_model(text: str) -> dict[str, Any]:
    """The entries in a tokenizer.json, without its model if that comes last. Raises ValueError for an invalid file."""
    entries: dict[str, Any] = {}
    position = _skip_past("{", text, 0)
    while True:
        name, position = DECODER.raw_decode(text, position)
        position = _skip_past(":", text, position)
        if name == "model" and not _has_later_entries(text, position) and not _has_prefix_and_merges(text, position):
            return entries
        value, position = DECODER.raw_decode(text, position)
        if name in entries:
            raise ValueError(f"it has two entries named {name!r:.40}")
        entries[name] = value
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if text[position : position + 1] == "}":
            break
        position = _skip_past(",", text, position)
    return entries


def _skip_past(character: str, text: str, position: int) -> int:
    """The position after a character and the white space around it."""
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if text[position : position + 1] != character:
        raise ValueError(
            f"it has {text[position : position + 20]!r} at position {position}, where {character!r} is expected"
        )
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


def _has_later_entries(text: str, start: int) -> bool:
    """Whether a relevant entry may follow the model, which means after a closing brace."""
    position = start
    for _ in range(_MAX_BRACES):
        position = text.find("}", position)
        if position < 0:
            return False
        entry = _NEXT_ENTRY.match(text, position)
        if entry and (entry[1] in _RELEVANT_ENTRIES or "\\" in entry[1]):
            return True
        position += 1
    return True  # it may, so everything is read


def _has_prefix_and_merges(text: str, start: int) -> bool:
    """Whether a model may have both merges and a prefix for inner tokens."""
    position = text.find(_PREFIX, start)
    has_prefix = position >= 0 and _NON_EMPTY.match(text, position + len(_PREFIX)) is not None
    return has_prefix and text.find('"merges"', start) >= 0


def check_merges(model: Any) -> None:
    """Raise ValueError for a BPE that has a prefix for inner tokens and a merge without it, because the library
    panics.
    """
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    for merge in model.get("merges") or () if prefix else ():
        second = merge.partition(" ")[2] if isinstance(merge, str) else merge[1]
        if not second.startswith(str(prefix)):
            raise ValueError(f"it merges {second!r:.40}, which does not start with {prefix!r:.40}")


def patterns_and_maps(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All patterns ("Regex") and maps ("precompiled_charsmap") in a tokenizer's steps."""
    pending: list[Any] = [part for name, part in parts.items() if name != "model"]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            pending += node.values()
            for name in ("Regex", "precompiled_charsmap"):
                if isinstance(node.get(name), str):
                    yield name, node[name]
