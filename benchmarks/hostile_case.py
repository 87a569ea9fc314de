"""What a file that is made to do harm is, and which commands read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """`make` writes below a new folder and returns the path, for which `{file}` stands in `headway` command lines."""

    name: str
    make: Callable[[Path], Path]
    commands: tuple[tuple[str, ...], ...]
