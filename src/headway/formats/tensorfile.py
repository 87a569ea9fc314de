"""Safetensors: a header, fully checked before any tensor is touched, and tensors as mapped views; and what all binary
formats share: a file mapped or copied into memory, and a reader for its header that validates every number.

8 bytes: length of the header | the header, JSON | the tensors, consecutive without gaps
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from headway.errors import UserError, nearest
from headway.formats.deferred import computed
from headway.io.durable import atomic_write
from headway.io.files import open_file
from headway.io.machine_memory import large_pages

_MAX_TENSOR_BYTES = 1 << 62  # maximum bytes per tensor, so that no product overflows 64 bits
_MAX_RANK = 32  # maximum dimensions: more than tensors in any format have


_COPY_MODE: ContextVar[bool] = ContextVar("copies", default=False)
_HEADER_CHUNK = 1 << 16  # bytes of a header per read
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which mmap names from Python 3.13
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
            # A private map is writable, as torch requires, and costs nothing until something writes to it. Linux would
            # refuse one that is larger than the memory if it had to reserve space for such writes.
            wanted = self.size and self._copies is None
            private: Any = {"flags": mmap.MAP_PRIVATE | _NO_RESERVE} if _NO_RESERVE else {"access": mmap.ACCESS_COPY}
            self._map = mmap.mmap(self._handle.fileno(), 0, **private) if wanted else None
            self._all = torch.frombuffer(self._map, dtype=torch.uint8) if self._map else torch.empty(0)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; check the path") from error

    def bytes(self, start: int, size: int) -> bytes:
        """Return a copy of `size` bytes from `start`; the caller has checked that they exist."""
        if size > _HEADER_CHUNK:
            return bytes(self._copy(start, size).numpy())
        first = start - self._chunk_start
        if not 0 <= first <= len(self._chunk) - size:
            self._chunk = bytes(self._copy(start, min(_HEADER_CHUNK, self.size - start)).numpy())
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


HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
MAX_TENSORS = 200_000  # tensors per file: models with thousands of experts have fewer
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNED = 64  # bytes: alignment of the first tensor of a written file


class SizedWeights(Protocol):
    """Named tensors of a file of `size` bytes."""

    source: str
    size: int

    def names(self) -> Collection[str]: ...
    def get(self, name: str) -> Tensor: ...
    def done(self, name: str) -> None: ...


class TensorEntry(NamedTuple):
    """The location of a tensor: `start` and `size` in bytes of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """Tensors of one safetensors file by name (Weights). UserError, with the remedy, for an invalid file."""

    def __init__(self, path: Path, remedy: str = "download it again") -> None:
        self.source = str(path)
        self._file = MappedFile(path)
        self.size = self._file.size  # bytes
        self.metadata, self._entries = _Header(self._file, remedy).read()

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def entry(self, name: str) -> TensorEntry:
        return self._entries[name]

    def get(self, name: str) -> Tensor:
        entry = self._entries[name]
        return self._file.tensor(entry.start, entry.dtype, entry.shape)

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Return `count` rows of a tensor, from row `start`, without reading others."""
        entry = self._entries[name]
        row_bytes = entry.size // max(1, entry.shape[0])
        return self._file.tensor(entry.start + start * row_bytes, entry.dtype, (count, *entry.shape[1:]))

    def done(self, name: str) -> None:
        entry = self._entries[name]
        self._file.drop(entry.start, entry.size)


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of a file that headway wrote, mapped, and its metadata. Errors as for `TensorFile`."""
    file = TensorFile(path, remedy)
    return {name: file.get(name) for name in file.names()}, file.metadata


class _Header:
    def __init__(self, file: MappedFile, remedy: str) -> None:
        self._file, self._remedy = file, remedy

    def read(self) -> tuple[dict[str, str], dict[str, TensorEntry]]:
        if self._file.size < 8:
            self._fail(f"has {self._file.size} bytes, too few for a header")
        length = int.from_bytes(self._file.bytes(0, 8), "little")
        if length > min(HEADER_LIMIT, self._file.size - 8):
            self._fail(f"claims a header of {length} bytes in a file of {self._file.size} (limit {HEADER_LIMIT})")

        def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            entries = dict(pairs)
            if len(entries) < len(pairs):
                counts = Counter(name for name, _ in pairs)
                self._fail(f"names {counts.most_common(1)[0][0]!r} twice in its header")
            return entries

        try:
            header = json.loads(self._file.bytes(8, length).decode("utf-8"), object_pairs_hook=reject_duplicates)
        except (ValueError, RecursionError) as error:
            self._fail(f"has a header that is not JSON ({str(error)[:80]})")
        if not isinstance(header, dict):
            self._fail("has a header that is not a mapping of tensors")
        if len(header) > MAX_TENSORS:
            self._fail(f"has {len(header):,} tensors, more than the limit of {MAX_TENSORS:,}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            self._fail("has metadata that are not strings")
        data_start = 8 + length
        entries = {name: self._entry(name, description, data_start) for name, description in header.items()}
        expected = data_start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
            if entry.start != expected:
                word = "overlaps the one before it" if entry.start < expected else "leaves a gap before it"
                self._fail(f"has tensor {name!r}, which {word} (byte {entry.start}, expected {expected})")
            expected += entry.size
        if expected != self._file.size:
            self._fail(f"has {self._file.size - expected} bytes after its last tensor")
        return metadata, entries

    def _entry(self, name: str, description: Any, data_start: int) -> TensorEntry:
        if not isinstance(description, dict) or description.keys() != {"dtype", "shape", "data_offsets"}:
            self._fail(f"describes tensor {name!r} as {str(description)[:80]}, not with dtype, shape and data_offsets")
        dtype = DTYPES.get(description["dtype"]) if isinstance(description["dtype"], str) else None
        if dtype is None:
            self._fail(f"has tensor {name!r} of dtype {str(description['dtype'])[:40]!r}; {nearest('', DTYPES)}")
        shape, offsets = description["shape"], description["data_offsets"]
        if not _is_integer_list(shape) or not _is_integer_list(offsets) or len(offsets) != 2:
            self._fail(f"has tensor {name!r} with shape {str(shape)[:80]} and offsets {str(offsets)[:80]}")
        start, end = offsets
        size = tensor_bytes(shape, dtype.itemsize)
        if size is None:
            self._fail(f"has tensor {name!r} of shape {str(shape)[:80]}, more than a file can contain")
        if end - start != size:
            self._fail(f"has tensor {name!r} of shape {str(shape)[:80]} in {end - start} bytes instead of {size}")
        if data_start + end > self._file.size:
            self._fail(f"ends before tensor {name!r}: {self._file.size} bytes of {data_start + end}")
        return TensorEntry(dtype, tuple(shape), data_start + start, size)

    def _fail(self, fact: str) -> NoReturn:
        raise UserError(f"{self._file.source} is not a complete safetensors file: it {fact}; {self._remedy}")


def _is_integer_list(values: Any) -> bool:
    """Whether this is a list of integers from 0 (True does not count)."""
    return isinstance(values, list) and all(type(number) is int and number >= 0 for number in values)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace the safetensors file at `path` atomically.

    The library orders the metadata differently each time; here equal tensors give equal files. Tensors are written one
    by one, so memory never holds a second copy of all of them.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with atomic_write(path) as draft, draft.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(computed(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


class Shards:
    """The tensors of several files as one collection (Weights); `opener` opens one of them."""

    def __init__(self, paths: list[Path], source: str, opener: Callable[[Path], SizedWeights] = TensorFile) -> None:
        self.source = source
        self.size = 0  # total bytes
        self._files: dict[str, SizedWeights] = {}
        for path in paths:
            file = opener(path)
            for name in file.names():
                if name in self._files:
                    raise UserError(
                        f"{source} contains tensor {name!r} twice, in {Path(self._files[name].source).name} and "
                        f"{path.name}; remove the shards that are not in its index, or download it again"
                    )
                self._files[name] = file
            self.size += file.size

    def names(self) -> Collection[str]:
        return self._files.keys()

    def get(self, name: str) -> Tensor:
        return self._files[name].get(name)

    def done(self, name: str) -> None:
        self._files[name].done(name)
