"""The output of a command: text and tables or one JSON object on stdout, notes on stderr; and its inputs in chunks."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from headway.errors import UserError, printable

CHUNK = 512  # lines to read before computing: enough to batch lines of similar length
# Control characters other than tabs and newlines, and marks that change text direction.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Terminal:
    """Writes the output of a command. With --json, stdout contains only the JSON result.

    Names, labels and generated text may contain control characters and direction marks. Files and pipes get them
    unchanged; on a terminal they are escaped.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the command started."""
        return time.perf_counter() - self._started

    def print(self, text: str = "", end: str = "\n") -> None:
        """Print readable results; nothing with --json."""
        if not self.json:
            print(_escape_controls(text), end=end, flush=True)

    def print_data(self, line: str) -> None:
        """Print a line of data, also with --json. It is not flushed, because data have many lines."""
        print(line)

    def note(self, text: str = "", end: str = "\n") -> None:
        """Print progress or a remark on stderr."""
        print("\n".join(map(printable, text.split("\n"))), end=end, file=sys.stderr, flush=True)

    def print_table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows with equal keys as aligned columns under a header; numbers are right-aligned."""
        if not self.json:
            print(format_table(rows, bold=sys.stdout.isatty()), flush=True)

    def print_result(self, value: Mapping[str, Any]) -> None:
        """With --json, print the result as the last line of stdout."""
        if self.json:
            print(_escape_controls(json.dumps(to_json_value(value), ensure_ascii=False, allow_nan=False)), flush=True)

    def chunks(
        self, inputs: Iterable[Any], failures: list[tuple[Any, UserError]] | None = None, size: int = CHUNK
    ) -> Iterator[tuple[int, list[Any]]]:
        """The inputs of a command in chunks, each with the number of its first input, counted from 1. A list is one
        chunk; a stream of lines has `size` per chunk, without newlines.

        A command that works in shares gets only those of its part, and their output and `failures` are stored when it
        asks for the next chunk.
        """
        if isinstance(inputs, list):
            yield 1, inputs
            return
        first = 1
        for chunk in line_chunks(inputs, size):
            yield first, chunk
            first += len(chunk)


def line_chunks(lines: Iterable[str], size: int = CHUNK) -> Iterator[list[str]]:
    """Chunks of lines without newlines; from a keyboard, one line at a time."""
    size = 1 if lines is sys.stdin and sys.stdin.isatty() else size
    stream = iter(lines)
    while chunk := [line.rstrip("\r\n") for line in islice(stream, size)]:
        yield chunk


def _escape_controls(text: str) -> str:
    """The text with control characters as JSON escapes if stdout is a terminal."""
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if sys.stdout.isatty() else text


def format_table(rows: Sequence[Mapping[str, Any]], bold: bool = False) -> str:
    """Rows with equal keys as aligned columns under a header; an empty string if there are no rows."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[format_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    right_aligned = [any(isinstance(row[name], (int, float)) for row in rows) for name in names]

    def line(values: Sequence[str]) -> str:
        parts = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(values, widths, right_aligned)]
        return "  ".join(parts).rstrip()

    header = line(names)
    return "\n".join([f"\033[1m{header}\033[0m" if bold else header, *map(line, cells)])


def format_cell(value: Any) -> str:
    """A value formatted for a table cell, on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return printable(str(value))


def to_json_value(value: Any) -> Any:
    """A value that JSON can represent: paths become strings, and NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
