"""JSON, an object a line: read strictly, with the line in every message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from headway.data.files import File, lines
from headway.errors import UserError, nearest


def objects(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl, with the number of each one's line. Blank lines are passed over."""
    for number, line in enumerate(lines(file), 1):
        if line.strip():
            yield number, _parsed(file, number, line)


def _parsed(file: File, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{file}, line {number} is not JSON ({reason}); write one object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number} is a JSON {type(row).__name__}; write one object a line")
    return row


def text_of(file: File, number: int, row: dict[str, Any], key: str) -> str:
    """The text under a key; UserError where there is none or it is no text."""
    if key not in row:
        raise UserError(f"{file}, line {number} has no key {key!r}; {nearest(key, row) if row else 'it is empty'}")
    return sound_text(file, number, key, row[key])


def sound_text(file: File, number: int, key: str, value: Any) -> str:
    """`value` if it is text that can be written; else a UserError."""
    if not isinstance(value, str):
        raise UserError(f"{file}, line {number}: {key!r} is {value!r}; give text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
        raise UserError(
            f"{file}, line {number}: {key!r} has half a surrogate pair at character {error.start}; write it anew"
        ) from error
    return value
