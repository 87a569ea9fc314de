"""Reader for safetensors: a header, fully checked before any tensor is touched, and tensors as mapped views.

8 bytes: length of the header | the header, JSON | the tensors, consecutive without gaps
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from headway.errors import UserError, nearest
from headway.formats.mapped_file import MappedFile, tensor_bytes

HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_MAX_TENSORS = 200_000  # tensors per file: models with thousands of experts have fewer
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

    def get(self, name: str) -> Tensor:
        entry = self._entries[name]
        return self._file.tensor(entry.start, entry.dtype, entry.shape)

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
        header = self._parse(self._file.bytes(8, length))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            self._fail("has metadata that are not strings")
        data_start = 8 + length
        entries = {name: self._entry(name, description, data_start) for name, description in header.items()}
        self._check_order(entries, data_start)
        return metadata, entries

    def _parse(self, text: bytes) -> dict[str, Any]:
        def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            entries = dict(pairs)
            if len(entries) < len(pairs):
                counts = Counter(name for name, _ in pairs)
                self._fail(f"names {counts.most_common(1)[0][0]!r} twice in its header")
            return entries

        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=reject_duplicates)
        except (ValueError, RecursionError) as error:
            self._fail(f"has a header that is not JSON ({str(error)[:80]})")
        if not isinstance(header, dict):
            self._fail("has a header that is not a mapping of tensors")
        if len(header) > _MAX_TENSORS:
            self._fail(f"has {len(header):,} tensors, more than the limit of {_MAX_TENSORS:,}")
        return header

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

    def _check_order(self, entries: dict[str, TensorEntry], data_start: int) -> None:
        """Check that each tensor starts where another ends: no two share bytes, and no bytes are hidden in between."""
        expected = data_start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
            if entry.start != expected:
                word = "overlaps the one before it" if entry.start < expected else "leaves a gap before it"
                self._fail(f"has tensor {name!r}, which {word} (byte {entry.start}, expected {expected})")
            expected += entry.size
        if expected != self._file.size:
            self._fail(f"has {self._file.size - expected} bytes after its last tensor")

    def _fail(self, fact: str) -> NoReturn:
        raise UserError(f"{self._file.source} is not a complete safetensors file: it {fact}; {self._remedy}")


def _is_integer_list(values: Any) -> bool:
    """Whether this is a list of integers from 0 (True does not count)."""
    return isinstance(values, list) and all(type(number) is int and number >= 0 for number in values)


class Shards:
    """The tensors of several safetensors files as one collection (Weights)."""

    def __init__(self, paths: list[Path], source: str) -> None:
        self.source = source
        self.size = 0  # total bytes
        self._files: dict[str, TensorFile] = {}
        for path in paths:
            file = TensorFile(path)
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
