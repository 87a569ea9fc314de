"""The container: a fully checked header of named values and tensor descriptions, and tensors that are read on request.

The header is parsed here because the reader of the package `gguf` trusts the lengths in a file; the package only
dequantises blocks.

    GGUF | version | counts | values: key, type, value | tensors: name, sizes, type, offset | padding | data
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats.mapped import Cursor, Mapped, tensor_bytes


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
_FLOAT, _TEXT, _ARRAY = 6, 8, 9
_LONGEST = 1 << 22  # items per array; the largest vocabularies have some 300,000
_DEEPEST = 4  # levels of nested arrays
_RANK = 4
_NAME = 1 << 16  # bytes


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
}


class BlockEntry(NamedTuple):
    number: int  # key of KINDS
    shape: tuple[int, ...]  # in torch's order: the last dimension is contiguous
    start: int
    size: int


class GgufFile:
    """The values and tensors of a file by name (Weights). Raises UserError for an incomplete or invalid file."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = Mapped(Path(path))
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
        self.values = _values(cursor)
        self._entries = _entries(cursor, tensors, self.values.get(ALIGNMENT, 32))

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def kind(self, name: str) -> NumberFormat:
        return KINDS[self._entries[name].number]

    def main_kind(self) -> NumberFormat:
        """The number format of most of the weights."""
        counts: Counter[int] = Counter()
        for entry in self._entries.values():
            counts[entry.number] += math.prod(entry.shape)
        return KINDS[counts.most_common(1)[0][0]] if counts else KINDS[0]

    def get(self, name: str) -> Tensor:
        """Return a tensor as stored, or dequantised to 32-bit floats."""
        entry = self._entries[name]
        kind = KINDS[entry.number]
        if kind.dtype is not None:
            return self._file.tensor(entry.start, kind.dtype, entry.shape)
        row = entry.shape[-1] // kind.block * kind.size
        blocks = self._file.tensor(entry.start, torch.uint8, (*entry.shape[:-1], row))
        with np.errstate(all="ignore"):  # a scale may be NaN
            found = quants().dequantize(blocks.numpy(), entry.number)
        return torch.from_numpy(found).view(entry.shape)

    def done(self, name: str) -> None:
        entry = self._entries[name]
        self._file.drop(entry.start, entry.size)


def _values(cursor: Cursor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(cursor.count("Q", 13, "values")):
        key = cursor.text("Q", "a key")
        if key in found:
            cursor.fail(f"value {key[:80]!r} occurs twice")
        found[key] = _value(cursor, cursor.number("I", "a type"), key[:80], 0)
    return found


def _value(cursor: Cursor, kind: int, key: str, depth: int) -> Any:
    if kind in _SCALARS:
        found = cursor.number(_SCALARS[kind], key)
        return float(str(np.float32(found))) if kind == _FLOAT else found  # 1e-6 exactly, not its 32-bit rounding
    if kind == _TEXT:
        return cursor.text("Q", key)
    if kind != _ARRAY or depth == _DEEPEST:
        cursor.fail(f"value {key!r} has unknown type {kind}")
    inner = cursor.number("I", key)
    least = {_TEXT: 8, _ARRAY: 12}.get(inner, 1)
    count = cursor.count("Q", least, f"items of {key}")
    if count > _LONGEST:
        cursor.fail(f"array {key!r} has {count} items, more than {_LONGEST}")
    if inner in _SCALARS:
        return list(cursor.numbers(f"{count}{_SCALARS[inner]}", key))
    return [_value(cursor, inner, key, depth + 1) for _ in range(count)]


def _entries(cursor: Cursor, count: int, alignment: Any) -> dict[str, BlockEntry]:
    if type(alignment) is not int or alignment < 8 or alignment > 1 << 20 or alignment & (alignment - 1):
        cursor.fail(f"the alignment {str(alignment)[:40]} is not a power of two of at least 8")
    described = [_described(cursor) for _ in range(count)]
    data = _padded(cursor.place, alignment)
    found: dict[str, BlockEntry] = {}
    expected = 0
    for name, number, shape, offset, size in described:
        if name in found:
            cursor.fail(f"tensor {name!r} occurs twice")
        if offset != expected:
            cursor.fail(f"tensor {name!r} has offset {offset} instead of {expected}, the end of the previous one")
        if data + offset + size > cursor.file.size:
            cursor.fail(f"tensor {name!r} ends at {data + offset + size} of {cursor.file.size} bytes")
        found[name] = BlockEntry(number, shape, data + offset, size)
        expected = _padded(offset + size, alignment)
    return found


def _described(cursor: Cursor) -> tuple[str, int, tuple[int, ...], int, int]:
    name = cursor.text("Q", "a name")
    if len(name) > _NAME:
        cursor.fail(f"a tensor's name has {len(name)} characters")
    rank = cursor.number("I", "a rank")
    if not 1 <= rank <= _RANK:
        cursor.fail(f"tensor {name!r} has {rank} dimensions, not 1 to {_RANK}")
    shape = tuple(reversed(cursor.numbers(f"{rank}Q", "a shape")))
    number = cursor.number("I", "a type")
    offset = cursor.number("Q", "an offset")
    kind = KINDS.get(number)
    if kind is None:
        known = ", ".join(each.name for each in KINDS.values())
        raise UserError(
            f"{cursor.file.source}: tensor {name!r} has quantisation type {number}, which is not supported; "
            f"get the model in one of {known}"
        )
    if shape[-1] % kind.block or tensor_bytes(shape, kind.size) is None:
        cursor.fail(f"tensor {name!r} of shape {shape} does not consist of {kind.name} blocks of {kind.block}")
    return name, number, shape, offset, math.prod(shape) // kind.block * kind.size


def _padded(place: int, alignment: int) -> int:
    return place + -place % alignment
