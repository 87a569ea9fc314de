"""A binary file mapped or copied into memory, and a reader for its header that validates every number."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from headway.errors import UserError
from headway.huge_pages import large_pages
from headway.safe_io import open_file

_MAX_TENSOR_BYTES = 1 << 62  # maximum bytes per tensor, so that no product overflows 64 bits
_MAX_RANK = 32  # maximum dimensions: more than tensors in any format have


_COPY_MODE: ContextVar[bool] = ContextVar("copies", default=False)
_CHUNK = 1 << 16  # bytes of a header per read
_SMALL, _SLAB, _LINE = 1 << 16, 1 << 25, 64  # bytes


@contextmanager
def private_copies() -> Iterator[None]:
    """In this context, tensors from files are copies in memory, which later writes to the files cannot change."""
    token = _COPY_MODE.set(True)
    try:
        yield
    finally:
        _COPY_MODE.reset(token)


class MappedFile:
    """A whole file as private memory: tensors are views of it, and writes to them never reach the file.

    Reading a map of a truncated file kills the process, and a file changed in place returns the new bytes. Neither
    happens within `private_copies`, or with `bytes`.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; pass a file")
        self._copies: dict[tuple[int, int], Tensor] | None = {} if _COPY_MODE.get() else None
        self._slabs = _Slabs()
        self._chunk, self._chunk_start = b"", 0
        try:
            self._handle = open_file(path)
            finalize(self, self._handle.close)
            self.size = self._handle.seek(0, 2)
            # A private map is writable, as torch requires, and costs nothing until something writes to it.
            wanted = self.size and self._copies is None
            self._map = mmap.mmap(self._handle.fileno(), 0, access=mmap.ACCESS_COPY) if wanted else None
            self._all = torch.frombuffer(self._map, dtype=torch.uint8) if self._map else torch.empty(0)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; check the path") from error

    def bytes(self, start: int, size: int) -> bytes:
        """Return a copy of `size` bytes from `start`; the caller has checked that they exist."""
        if size > _CHUNK:
            return bytes(self._copy(start, size).numpy())
        first = start - self._chunk_start
        if not 0 <= first <= len(self._chunk) - size:
            self._chunk = bytes(self._copy(start, min(_CHUNK, self.size - start)).numpy())
            self._chunk_start, first = start, 0
        return self._chunk[first : first + size]

    def tensor(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return a tensor from byte `start`: a view of the map, or a copy if it is not aligned. Within `private_copies`
        it is a copy that stays cached until it is dropped.
        """
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        if self._copies is not None:
            if (start, size) not in self._copies:
                self._copies[start, size] = self._copy(start, size)
            return self._copies[start, size].view(dtype).view(tuple(shape))
        raw = self._all[start : start + size]
        return (raw.clone() if start % dtype.itemsize else raw).view(dtype).view(tuple(shape))

    def drop(self, start: int, size: int) -> None:
        """Release the pages of these bytes to the system; they are read again on the next access.

        Writes to views of them are lost, so this is only for readers that have not handed them out to be changed.
        """
        if self._copies is not None:
            self._copies.pop((start, size), None)
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        if size:
            self._map.madvise(mmap.MADV_DONTNEED, first, start + size - first)

    def _copy(self, start: int, size: int) -> Tensor:
        """Copy bytes of the file to new memory. UserError if the file was truncated since it was opened."""
        buffer = self._slabs.take(size)
        try:
            self._handle.seek(start)
            count = self._handle.readinto(buffer.numpy().data)
        except OSError as error:
            raise UserError(f"{self.source} cannot be read: {error.strerror}; check the path") from error
        if count < size:
            raise UserError(f"{self.source} was truncated while it was read; try again when it is complete")
        return buffer


class _Slabs:
    """Memory for copies: many in a row in large pages, which return to the system once no tensor uses the slab.
    Small copies have separate memory because they often live longer.
    """

    def __init__(self) -> None:
        self._slab, self._used = np.empty(0, np.uint8), 0

    def take(self, size: int) -> Tensor:
        """Return new memory of `size` bytes, aligned to a cache line."""
        if size < _SMALL:
            return torch.empty(size, dtype=torch.uint8)
        if len(self._slab) - self._used < size:
            self._slab, self._used = large_pages(max(size, _SLAB)), 0
        start, self._used = self._used, self._used + size + -size % _LINE
        return torch.from_numpy(self._slab[start : start + size])


def adjacent_view(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return tensors of one dtype, adjacent along their first axis, as one tensor in the same memory; otherwise None.

    Fusing query, key and value, or gate and up, is free if they are adjacent in the file; gate and up are adjacent in
    files that sort their tensors by name.
    """
    first = tensors[0]
    offset = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or tensor.storage_offset() != offset or not tensor.is_contiguous():
            return None
        offset += tensor.numel()
    if len(tensors) == 1:
        return first
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


def tensor_bytes(shape: Sequence[int], itemsize: int) -> int | None:
    """Return the bytes of a tensor whose shape comes from a file; None for an impossible shape."""
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        return None
    reach = itemsize
    for size in shape:
        reach *= max(size, 1)
        if reach > _MAX_TENSOR_BYTES:
            return None
    return math.prod(shape) * itemsize


TEXT_LIMIT = 1 << 24  # bytes per string in a header; a chat template has a few thousand


class Cursor:
    """A position in a mapped file. A read past the end or above a limit is a UserError with the position."""

    def __init__(self, file: MappedFile, offset: int = 0) -> None:
        self.file = file
        self.offset = offset

    @property
    def remaining(self) -> int:
        return self.file.size - self.offset

    def take(self, size: int, label: str) -> bytes:
        """Read the next `size` bytes."""
        self.skip(size, label)
        return self.file.bytes(self.offset - size, size)

    def skip(self, size: int, label: str) -> int:
        """Advance by `size` bytes; return the offset of their start."""
        if size > self.remaining:
            self.fail(f"{label} needs {size} bytes, but {self.remaining} are left")
        self.offset += size
        return self.offset - size

    def unpack(self, fmt: str, label: str) -> tuple:
        """Read numbers in `struct` notation, little-endian."""
        size = struct.calcsize("<" + fmt)
        return struct.unpack("<" + fmt, self.take(size, label))

    def number(self, fmt: str, label: str) -> int:
        return self.unpack(fmt, label)[0]

    def count(self, fmt: str, min_bytes: int, label: str) -> int:
        """Read the number of items that follow, each of at least `min_bytes` bytes, so that a count beyond the file
        fails at once.
        """
        item_count = self.number(fmt, label)
        if item_count < 0 or item_count * min_bytes > self.remaining:
            self.fail(f"{item_count} {label} cannot follow in {self.remaining} bytes")
        return item_count

    def text(self, fmt: str, label: str) -> str:
        """Read a length-prefixed string."""
        raw = self.raw(fmt, label)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{label} is not UTF-8 text")

    def raw(self, fmt: str, label: str) -> bytes:
        """Read length-prefixed bytes."""
        size = self.count(fmt, 1, f"bytes of {label}")
        if size > TEXT_LIMIT:
            self.fail(f"{label} of {size} bytes exceeds the limit of {TEXT_LIMIT}")
        return self.take(size, label)

    def fail(self, fact: str) -> NoReturn:
        raise UserError(f"{self.file.source}: {fact} (at byte {self.offset}); the file is damaged, download it again")
