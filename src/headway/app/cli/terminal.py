"""What a command prints: lines and tables for people on stdout, or one JSON object; notes on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.errors import printable

# Control characters, except tabs and ends of lines, and marks that change the direction in which a line is shown.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Terminal:
    """Where a command writes. With --json, stdout carries the JSON result alone.

    What names, labels and models say may hold control characters and marks of direction. Files and other programs get
    them as they are; a terminal, which would obey them, gets their escapes.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Since the command began."""
        return time.perf_counter() - self._began

    def say(self, text: str = "", end: str = "\n") -> None:
        """Results for a person; nothing with --json."""
        if not self.json:
            print(_shown(text), end=end, flush=True)

    def note(self, text: str = "") -> None:
        """Progress and remarks, on stderr."""
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with equal keys as aligned columns under a header; numbers stand to the right."""
        if not self.json:
            print(columns(rows, bold=sys.stdout.isatty()), flush=True)

    def result(self, value: Mapping[str, Any]) -> None:
        """The command's result: with --json, the last line of stdout."""
        if self.json:
            print(_shown(json.dumps(plain(value), ensure_ascii=False, allow_nan=False)), flush=True)


def _shown(text: str) -> str:
    """A text for stdout; the escapes are those of JSON."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if sys.stdout.isatty() else text


def columns(rows: Sequence[Mapping[str, Any]], bold: bool = False) -> str:
    """Rows with equal keys as aligned columns under a header; an empty text where there are no rows."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    right = [any(isinstance(row[name], (int, float)) for row in rows) for name in names]

    def line(texts: Sequence[str]) -> str:
        parts = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right)]
        return "  ".join(parts).rstrip()

    header = line(names)
    return "\n".join([f"\033[1m{header}\033[0m" if bold else header, *map(line, cells)])


def cell(value: Any) -> str:
    """A value as a table shows it, on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return printable(str(value))


def plain(value: Any) -> Any:
    """A value as JSON can say it: paths as text, numbers that are none as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
