"""Pictures of cameras in memory maps: uint8 [N, H, W, 3], read where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from headway.data.store import read_column


class Frames(Protocol):
    """The pictures of one camera, of all steps one after the other. `size` is height and width, `recorded` what they
    were before they were scaled.
    """

    size: tuple[int, int]
    recorded: tuple[int, int]

    def __len__(self) -> int: ...
    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        ...


class MappedFrames:
    """N pictures in a file that `Columns` wrote as one column of bytes."""

    def __init__(
        self, folder: Path, name: str, count: int, size: tuple[int, int], recorded: tuple[int, int] | None = None
    ) -> None:
        """Raises UserError for a file that is not of this length."""
        self.size, self.recorded = size, recorded or size
        shape = (count, *size, 3)
        self._pixels = read_column(folder, name, np.uint8, int(np.prod(shape))).reshape(shape)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        return np.asarray(self._pixels[steps])


class JoinedFrames:
    """The pictures of several, one after the other; all are of one size."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self.size, self.recorded = parts[0].size, parts[0].recorded
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        found = np.empty((len(steps), *self.size, 3), np.uint8)
        numbers = np.searchsorted(self._ends, steps, side="right")
        for number in np.unique(numbers).tolist():
            places = numbers == number
            found[places] = self._parts[number].read(steps[places] - (self._ends[number] - len(self._parts[number])))
        return found
