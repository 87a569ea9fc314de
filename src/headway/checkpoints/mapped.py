"""A file of numbers mapped into memory: bytes are read when they are looked at, and can be given back."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from headway.errors import UserError

_LARGEST = 1 << 62  # bytes: what a tensor's shape may claim, so that no product leaves 64 bits
_RANK = 32  # dimensions: more than any format's tensors have


class Mapped:
    """A whole file as private memory: tensors are views of it, and what is written to them never reaches the file."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                # A private map is writable, as torch expects of its memory, and costs nothing until it is written to.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; check the path") from error

    def bytes(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes from `start`; the caller has checked that they are there."""
        return b"" if self._map is None else self._map[start : start + size]

    def tensor(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """A view of the file from byte `start`; a copy where its numbers lie across their natural borders."""
        count = math.prod(shape)
        if count == 0 or self._map is None:
            return torch.empty(tuple(shape), dtype=dtype)
        if start % dtype.itemsize:
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
            return raw.clone().view(dtype).view(tuple(shape))
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(tuple(shape))

    def drop(self, start: int, size: int) -> None:
        """The bytes are not needed now: their pages go back to the system, and are read again if looked at again.

        What was written to views of them is lost, so this is for readers that have not handed them out to be changed.
        """
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        if size:
            self._map.madvise(mmap.MADV_DONTNEED, first, start + size - first)


def tensor_bytes(shape: Sequence[int], itemsize: int) -> int | None:
    """Bytes of a tensor whose shape comes from a file; None for a shape that no tensor can have."""
    if len(shape) > _RANK or any(size < 0 for size in shape):
        return None
    reach = itemsize
    for size in shape:
        reach *= max(size, 1)
        if reach > _LARGEST:
            return None
    return math.prod(shape) * itemsize
