"""The container: a fully checked header of named values and tensor descriptions, and tensors that are read on request.

The header is parsed here because the reader of the package `gguf` trusts the lengths in a file; the package only
dequantises blocks.

    GGUF | version | counts | values: key, type, value | tensors: name, sizes, type, offset | padding | data
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats.tensorfile import Cursor, MappedFile, tensor_bytes


def gguf() -> ModuleType:
    try:
        import gguf as package
    except ImportError:
        raise UserError(
            "this .gguf file needs the package gguf, which is not installed; run pip install 'headway[gguf]'"
        ) from None
    return package


def quants() -> ModuleType:
    return gguf().quants


MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = "general.alignment"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT, _STRING, _ARRAY = 6, 8, 9
_MAX_ARRAY = 1 << 22  # items per array; the largest vocabularies have some 300,000
_MAX_DEPTH = 4  # levels of nested arrays
_MAX_RANK = 4
_MAX_NAME_BYTES = 1 << 16  # bytes per tensor name


class NumberFormat(NamedTuple):
    """A number format: `block` numbers in `size` bytes; unquantised formats have a `dtype`."""

    name: str
    block: int
    size: int
    dtype: torch.dtype | None = None


KINDS = {
    0: NumberFormat("F32", 1, 4, torch.float32),
    1: NumberFormat("F16", 1, 2, torch.float16),
    30: NumberFormat("BF16", 1, 2, torch.bfloat16),
    2: NumberFormat("Q4_0", 32, 18),
    3: NumberFormat("Q4_1", 32, 20),
    6: NumberFormat("Q5_0", 32, 22),
    7: NumberFormat("Q5_1", 32, 24),
    8: NumberFormat("Q8_0", 32, 34),
    10: NumberFormat("Q2_K", 256, 84),
    11: NumberFormat("Q3_K", 256, 110),
    12: NumberFormat("Q4_K", 256, 144),
    13: NumberFormat("Q5_K", 256, 176),
    14: NumberFormat("Q6_K", 256, 210),
    16: NumberFormat("IQ2_XXS", 256, 66),
    17: NumberFormat("IQ2_XS", 256, 74),
    18: NumberFormat("IQ3_XXS", 256, 98),
    19: NumberFormat("IQ1_S", 256, 50),
    20: NumberFormat("IQ4_NL", 32, 18),
    21: NumberFormat("IQ3_S", 256, 110),
    22: NumberFormat("IQ2_S", 256, 82),
    23: NumberFormat("IQ4_XS", 256, 136),
    29: NumberFormat("IQ1_M", 256, 56),
    34: NumberFormat("TQ1_0", 256, 54),
    35: NumberFormat("TQ2_0", 256, 66),
    39: NumberFormat("MXFP4", 32, 17),
}
_PART, _PARTS = "split.no", "split.count"  # of a model in several files
_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MAX_PARTS = 1000


class BlockEntry(NamedTuple):
    file: MappedFile
    number: int  # key of KINDS
    shape: tuple[int, ...]  # in torch's order: the last dimension is contiguous
    start: int
    size: int


class GgufFile:
    """The values and tensors of a file by name (Weights). Raises UserError for an incomplete or invalid file.

    A model in several files (NAME-00001-of-00003.gguf) is opened by the first of them, which has the values.
    """

    def __init__(self, path: Path, part: int = 0) -> None:
        self.source = str(path)
        self._file = MappedFile(Path(path))
        self.size = self._file.size
        cursor = Cursor(self._file)
        if self._file.bytes(0, 4) != MAGIC:
            raise UserError(f"{path} is not a GGUF file (it does not start with GGUF); pass a .gguf file")
        cursor.skip(4, "the magic")
        version = cursor.number("I", "the version")
        if version not in VERSIONS:
            raise UserError(
                f"{path} is version {version} of GGUF; headway reads 2 and 3, little-endian: convert it again"
            )
        tensors = cursor.count("Q", 24, "tensors")
        values: dict[str, Any] = {}
        for _ in range(cursor.count("Q", 13, "values")):
            key = cursor.text("Q", "a key")
            if key in values:
                cursor.fail(f"value {key[:80]!r} occurs twice")
            values[key] = _read_value(cursor, cursor.number("I", "a type"), key[:80], 0)
        self.values = values
        self._entries = _read_entries(cursor, tensors, self.values.get(ALIGNMENT, 32))
        parts = self.values.get(_PARTS, 1)
        if part != self.values.get(_PART, 0):
            raise UserError(f"{path} is not part {part + 1} of its model; pass the file that ends in 00001-of-...gguf")
        if parts != 1 and not part:
            self._open_parts(Path(path), parts)

    def _open_parts(self, path: Path, parts: Any) -> None:
        """Add the tensors of the other files."""
        name = _PART_NAME.fullmatch(path.name)
        if name is None or type(parts) is not int or not 1 <= parts <= _MAX_PARTS or int(name[3]) != parts:
            raise UserError(f"{path} is one of {str(parts)[:40]} files, but its name does not end in -00001-of-N.gguf")
        for part in range(1, parts):
            other = path.with_name(f"{name[1]}-{part + 1:05}-of-{name[3]}.gguf")
            if not other.is_file():
                raise UserError(f"{other} is missing: {path.name} is one of {parts} files; download all of them")
            file = GgufFile(other, part)
            if twice := self._entries.keys() & file._entries.keys():
                raise UserError(f"{other} has tensor {min(twice)[:80]!r} of another part; download the files again")
            self._entries |= file._entries
            self.size += file.size

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def kind(self, name: str) -> NumberFormat:
        return KINDS[self._entries[name].number]

    def main_kind(self) -> NumberFormat:
        """The number format that most weights have."""
        counts: Counter[int] = Counter()
        for entry in self._entries.values():
            counts[entry.number] += math.prod(entry.shape)
        return KINDS[counts.most_common(1)[0][0]] if counts else KINDS[0]

    def _entry(self, name: str, item: int | None) -> BlockEntry:
        """The entry of a tensor, or of one item along its first axis."""
        entry = self._entries[name]
        if item is None:
            return entry
        size = entry.size // entry.shape[0]
        return entry._replace(shape=entry.shape[1:], start=entry.start + item * size, size=size)

    def get(self, name: str, item: int | None = None) -> Tensor:
        """Return a tensor, or one item along its first axis, as stored or dequantised to 32-bit floats."""
        entry = self._entry(name, item)
        kind = KINDS[entry.number]
        if kind.dtype is not None:
            return entry.file.tensor(entry.start, kind.dtype, entry.shape)
        if not entry.size:
            return torch.empty(entry.shape)
        row = entry.shape[-1] // kind.block * kind.size
        blocks = entry.file.tensor(entry.start, torch.uint8, (*entry.shape[:-1], row))
        with np.errstate(all="ignore"):  # a scale may be NaN
            array = quants().dequantize(blocks.numpy(), entry.number)
        return torch.from_numpy(array).view(entry.shape)

    def done(self, name: str, item: int | None = None) -> None:
        entry = self._entry(name, item)
        entry.file.drop(entry.start, entry.size)


def _read_value(cursor: Cursor, kind: int, key: str, depth: int) -> Any:
    if kind in _SCALARS:
        scalar = cursor.number(_SCALARS[kind], key)
        return float(str(np.float32(scalar))) if kind == _FLOAT else scalar  # 1e-6 exactly, not its 32-bit rounding
    if kind == _STRING:
        return cursor.text("Q", key)
    if kind != _ARRAY or depth == _MAX_DEPTH:
        cursor.fail(f"value {key!r} has unknown type {kind}")
    inner = cursor.number("I", key)
    min_bytes = {_STRING: 8, _ARRAY: 12}.get(inner, 1)
    count = cursor.count("Q", min_bytes, f"items of {key}")
    if count > _MAX_ARRAY:
        cursor.fail(f"array {key!r} has {count} items, more than {_MAX_ARRAY}")
    if inner in _SCALARS:
        return list(cursor.unpack(f"{count}{_SCALARS[inner]}", key))
    return [_read_value(cursor, inner, key, depth + 1) for _ in range(count)]


def _read_entries(cursor: Cursor, count: int, alignment: Any) -> dict[str, BlockEntry]:
    if type(alignment) is not int or alignment < 8 or alignment > 1 << 20 or alignment & (alignment - 1):
        cursor.fail(f"the alignment {str(alignment)[:40]} is not a power of two of at least 8")
    descriptions = [_read_description(cursor) for _ in range(count)]
    data_start = _padded(cursor.offset, alignment)
    entries: dict[str, BlockEntry] = {}
    expected = 0
    for name, number, shape, offset, size in descriptions:
        if name in entries:
            cursor.fail(f"tensor {name!r} occurs twice")
        if offset != expected:
            cursor.fail(f"tensor {name!r} has offset {offset} instead of {expected}, the end of the previous one")
        if data_start + offset + size > cursor.file.size:
            cursor.fail(f"tensor {name!r} ends at {data_start + offset + size} of {cursor.file.size} bytes")
        entries[name] = BlockEntry(cursor.file, number, shape, data_start + offset, size)
        expected = _padded(offset + size, alignment)
    return entries


def _read_description(cursor: Cursor) -> tuple[str, int, tuple[int, ...], int, int]:
    name = cursor.text("Q", "a name")
    if len(name) > _MAX_NAME_BYTES:
        cursor.fail(f"a tensor's name has {len(name)} characters")
    rank = cursor.number("I", "a rank")
    if not 1 <= rank <= _MAX_RANK:
        cursor.fail(f"tensor {name!r} has {rank} dimensions, not 1 to {_MAX_RANK}")
    shape = tuple(reversed(cursor.unpack(f"{rank}Q", "a shape")))
    number = cursor.number("I", "a type")
    offset = cursor.number("Q", "an offset")
    kind = KINDS.get(number)
    if kind is None:
        known = ", ".join(known_format.name for known_format in KINDS.values())
        raise UserError(
            f"{cursor.file.source}: tensor {name!r} has quantisation type {number}, which is not supported; "
            f"get the model in one of {known}"
        )
    if shape[-1] % kind.block or tensor_bytes(shape, kind.size) is None:
        cursor.fail(f"tensor {name!r} of shape {shape} does not consist of {kind.name} blocks of {kind.block}")
    return name, number, shape, offset, math.prod(shape) // kind.block * kind.size


def _padded(offset: int, alignment: int) -> int:
    return offset + -offset % alignment
