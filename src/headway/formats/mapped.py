"""A file of numbers mapped into memory, and its header read from front to back, where no number in it is believed
before it is checked.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from headway.errors import UserError
from headway.received import opened

_LARGEST = 1 << 62  # bytes: what a tensor's shape may claim, so that no product leaves 64 bits
_RANK = 32  # dimensions: more than any format's tensors have


class Mapped:
    """A whole file as private memory: tensors are views of it, and what is written to them never reaches the file."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no plain file; give a file")
        try:
            with opened(path) as file:
                self.size = file.seek(0, 2)
                # A private map is writable, as torch expects of its memory, and costs nothing until it is written to.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else None
                self._all = torch.frombuffer(self._map, dtype=torch.uint8) if self._map else torch.empty(0)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; check the path") from error

    def bytes(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes from `start`; the caller has checked that they are there."""
        return b"" if self._map is None else self._map[start : start + size]

    def tensor(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """A view of the file from byte `start`; a copy where its numbers lie across their natural borders."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0 or self._map is None:
            return torch.empty(tuple(shape), dtype=dtype)
        raw = self._all[start : start + size]
        return (raw.clone() if start % dtype.itemsize else raw).view(dtype).view(tuple(shape))

    def drop(self, start: int, size: int) -> None:
        """The bytes are not needed now: their pages go back to the system, and are read again if looked at again.

        What was written to views of them is lost, so this is for readers that have not handed them out to be changed.
        """
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        if size:
            self._map.madvise(mmap.MADV_DONTNEED, first, start + size - first)


def one_view(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors of one type, one after the other along their first axis, as one tensor of the same memory.

    None where they do not lie so: to fuse query, key and value, or gate and up, is free where the file has them in a
    row, as files whose tensors are in the order of their names have gate and up.
    """
    first = tensors[0]
    place = first.storage_offset()
    for each in tensors:
        same = each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or each.storage_offset() != place or not each.is_contiguous():
            return None
        place += each.numel()
    if len(tensors) == 1:
        return first
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


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


TEXT_LIMIT = 1 << 24  # bytes of one text in a header: a chat template has some thousand


class Cursor:
    """A place in a mapped file. Every read past its end, or of more than a limit, is a UserError that says where."""

    def __init__(self, file: Mapped, place: int = 0) -> None:
        self.file = file
        self.place = place

    @property
    def left(self) -> int:
        return self.file.size - self.place

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        self.skip(size, what)
        return self.file.bytes(self.place - size, size)

    def skip(self, size: int, what: str) -> int:
        """Go on by `size` bytes; gives the place they start at."""
        if size > self.left:
            self.fail(f"{what} needs {size} bytes, but {self.left} are left")
        self.place += size
        return self.place - size

    def numbers(self, form: str, what: str) -> tuple:
        """Numbers in the notation of `struct`, little-endian."""
        size = struct.calcsize("<" + form)
        return struct.unpack("<" + form, self.take(size, what))

    def number(self, form: str, what: str) -> int:
        return self.numbers(form, what)[0]

    def count(self, form: str, least: int, what: str) -> int:
        """How many items follow; each takes at least `least` bytes, so that a count beyond the file is seen at once."""
        found = self.number(form, what)
        if found < 0 or found * least > self.left:
            self.fail(f"{found} {what} cannot follow in {self.left} bytes")
        return found

    def text(self, form: str, what: str) -> str:
        """A text after its length."""
        raw = self.raw(form, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8 text")

    def raw(self, form: str, what: str) -> bytes:
        """Bytes after their length."""
        size = self.count(form, 1, f"bytes of {what}")
        if size > TEXT_LIMIT:
            self.fail(f"{what} of {size} bytes exceeds the limit of {TEXT_LIMIT}")
        return self.take(size, what)

    def fail(self, fact: str) -> NoReturn:
        raise UserError(f"{self.file.source}: {fact} (at byte {self.place}); the file is damaged: get it again")
