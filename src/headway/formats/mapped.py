"""A file of numbers mapped or copied into memory, and its header read from front to back, where no number in it is
believed before it is checked.
"""

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
from headway.pages import large_pages
from headway.received import opened

_LARGEST = 1 << 62  # bytes: what a tensor's shape may claim, so that no product leaves 64 bits
_RANK = 32  # dimensions: more than any format's tensors have


_COPIES: ContextVar[bool] = ContextVar("copies", default=False)
_CHUNK = 1 << 16  # bytes of a header that are read at once
_SMALL, _SLAB, _LINE = 1 << 16, 1 << 25, 64  # bytes


@contextmanager
def copied() -> Iterator[None]:
    """Within, tensors of files are copies in memory of their own, which nobody changes who writes to the files."""
    token = _COPIES.set(True)
    try:
        yield
    finally:
        _COPIES.reset(token)


class Mapped:
    """A whole file as private memory: tensors are views of it, and what is written to them never reaches the file.

    A read of a map whose file was cut ends the process, and one of a file changed in place gives the new bytes.
    Neither happens within `copied`, nor in `bytes`.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no plain file; give a file")
        self._copies: dict[tuple[int, int], Tensor] | None = {} if _COPIES.get() else None
        self._slabs = _Slabs()
        self._chunk, self._chunk_start = b"", 0
        try:
            self._open = opened(path)
            finalize(self, self._open.close)
            self.size = self._open.seek(0, 2)
            # A private map is writable, as torch expects of its memory, and costs nothing until it is written to.
            wanted = self.size and self._copies is None
            self._map = mmap.mmap(self._open.fileno(), 0, access=mmap.ACCESS_COPY) if wanted else None
            self._all = torch.frombuffer(self._map, dtype=torch.uint8) if self._map else torch.empty(0)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; check the path") from error

    def bytes(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes from `start`; the caller has checked that they are there."""
        if size > _CHUNK:
            return bytes(self._copy(start, size).numpy())
        first = start - self._chunk_start
        if not 0 <= first <= len(self._chunk) - size:
            self._chunk = bytes(self._copy(start, min(_CHUNK, self.size - start)).numpy())
            self._chunk_start, first = start, 0
        return self._chunk[first : first + size]

    def tensor(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """The numbers from byte `start`: a view of the map, or a copy where they lie across their natural borders, and
        within `copied`, where it is kept until it is dropped.
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
        """The bytes are not needed now: their pages go back to the system, and are read again if looked at again.

        What was written to views of them is lost, so this is for readers that have not handed them out to be changed.
        """
        if self._copies is not None:
            self._copies.pop((start, size), None)
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        if size:
            self._map.madvise(mmap.MADV_DONTNEED, first, start + size - first)

    def _copy(self, start: int, size: int) -> Tensor:
        """Bytes of the file in new memory. UserError where the file has been cut since it was opened."""
        found = self._slabs.take(size)
        try:
            self._open.seek(start)
            count = self._open.readinto(found.numpy().data)
        except OSError as error:
            raise UserError(f"{self.source} cannot be read: {error.strerror}; check the path") from error
        if count < size:
            raise UserError(f"{self.source} was cut while it was read; read it again when it is whole")
        return found


class _Slabs:
    """Memory for copies: many of them one after the other in large pages, which go back to the system as soon as no
    tensor needs any of a slab. Small ones have memory of their own, as they are often needed for longer.
    """

    def __init__(self) -> None:
        self._slab, self._used = np.empty(0, np.uint8), 0

    def take(self, size: int) -> Tensor:
        """New memory of `size` bytes, from the start of a line of memory."""
        if size < _SMALL:
            return torch.empty(size, dtype=torch.uint8)
        if len(self._slab) - self._used < size:
            self._slab, self._used = large_pages(max(size, _SLAB)), 0
        start, self._used = self._used, self._used + size + -size % _LINE
        return torch.from_numpy(self._slab[start : start + size])


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
