"""JSON from untrusted sources. Duplicate keys are an error, because parsers differ in which value they use."""

from __future__ import annotations

import json
from typing import Any

_MAX_LENGTH = 40  # maximum characters of a key or a value in a message


class DuplicateKeyError(ValueError):
    """An object has a duplicate key. The message names the key and both values: "the key 'a' twice (1 and 2)"."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; bytes may be UTF-8, UTF-16 or UTF-32. ValueError for invalid JSON."""
    return DECODER.decode(text if isinstance(text, str) else text.decode(json.detect_encoding(text)))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    first: dict[str, Any] = {}
    for key, value in pairs:
        if key in first:
            raise DuplicateKeyError(f"the key {_short(key)} twice ({_short(first[key])} and {_short(value)})")
        first[key] = value
    raise AssertionError("no key is there twice")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else "{...}" if isinstance(value, dict) else "[...]"
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
