"""The curves of a run: lines of its metrics.jsonl, read from where an earlier look ended."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from headway.errors import UserError, printable
from headway.io.files import open_file
from headway.io.json_files import parse_json

_TAIL = 1 << 16  # bytes at the end of metrics.jsonl that are read first
_MAX_READ = 1 << 23  # bytes of metrics.jsonl per answer
_MAX_LINES = 2000  # lines of training steps per answer; of more, every n-th
_CHECKED_BYTES = 64  # before an offset, by which a file that was written again is noticed
_MAX_NAME = 200  # characters of names
_MAX_SCORE = 1e100


class RunPoints(NamedTuple):
    """Lines of a run's metrics.jsonl after a position. `after` is the next position, and `has_more` whether there are
    more lines now. With `is_restart` the file was written again, and these are its first lines. Of the lines of
    training steps, only every n-th may be included (`every`).
    """

    after: str
    is_restart: bool
    has_more: bool
    every: int
    lines: list[dict[str, Any]]


def position_at_tail(path: Path) -> str:
    """The position of a complete line near the end of a file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _TAIL:
            return ""
        file.seek(size - _TAIL)
        offset = size - _TAIL + file.read(_TAIL).find(b"\n") + 1
        return _position(file, offset)


def _position(file: Any, offset: int) -> str:
    start = max(0, offset - _CHECKED_BYTES)
    file.seek(start)
    return f"{offset}-{zlib.crc32(file.read(offset - start))}"


def read_points(path: Path, after: str) -> RunPoints:
    offset_text, _, _ = after.partition("-")
    offset = int(offset_text) if offset_text.isdecimal() and len(offset_text) < 18 else 0
    try:
        if path.is_symlink():
            raise UserError(f"{path} is a link; replace it with a copy")
        file = open_file(path)
    except UserError:
        return RunPoints("", bool(after), False, 1, [])
    with file:
        is_restart = bool(after) and _position(file, offset) != after
        offset = 0 if is_restart else offset
        file.seek(offset)
        content = file.read(_MAX_READ)
        is_full = len(content) == _MAX_READ
        content = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        end = offset + len(content)
        lines = [line for line in map(_parse_line, content.splitlines()) if line is not None]
        position = _position(file, end)
    num_steps = sum("split" not in line for line in lines)
    every = max(1, math.ceil(num_steps / _MAX_LINES))
    if every > 1:
        kept, number = [], 0
        for line in lines:
            number += "split" not in line
            if "split" in line or number % every == 0 or number == num_steps:
                kept.append(line)
        lines = kept
    return RunPoints(position, is_restart, is_full and len(content) > 0, every, lines)


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """A line's step and numbers; None if it is damaged."""
    try:
        line = parse_json(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or count(line.get("step")) < 0:
        return None
    numbers = {short(name): finite(value) for name, value in line.items() if isinstance(value, (int, float))}
    split = line.get("split")
    return {**numbers, "step": line["step"], **({"split": short(split)} if isinstance(split, str) else {})}


def short(text: str) -> str:
    text = printable(text[: _MAX_NAME + 1])
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."


def finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _MAX_SCORE else None


def count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else -1
