"""Parquet files whose sizes are checked before anything in them is decoded.

The index at the end of a file (Thrift's compact protocol) is parsed here, because pyarrow aborts the process on some
damaged ones.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, NamedTuple

from headway.errors import UserError
from headway.received import check_expansion, opened

_HELD = 1 << 26  # bytes of dictionary-encoded strings decoded at once
_CELL = 64  # approximate bytes of a value as a Python object
_MAGIC, _DEEPEST = b"PAR1", 32


class ColumnSize(NamedTuple):
    """A column of a row group in a file's index."""

    path: str
    values: int
    dictionary: bool  # whether repeated strings are stored once


Index = list[list[ColumnSize]]  # per row group


def packaged_parquet(place: Path | IO[bytes], extra: str) -> Any:
    """The module pyarrow.parquet; UserError that names `source` if the package of that extra is missing."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{place} needs the package pyarrow; pip install 'headway[{extra}]'") from error
    return pyarrow.parquet


def open_parquet(place: Path | IO[bytes], extra: str, columns: Collection[str] = ()) -> Any:
    """Open a ParquetFile; strings of `columns` are read as dictionaries. UserError if pyarrow (of that extra) is
    missing or the path is not a regular file; pyarrow's own exceptions if it is not Parquet.
    """
    parquet = packaged_parquet(place, extra)
    if isinstance(place, Path):
        opened(place).close()  # a pipe would block the library
    return parquet.ParquetFile(place, read_dictionary=list(columns) or None)


def index_of(place: Path | IO[bytes]) -> Index:
    """The columns of each row group. ValueError for a file with an invalid index."""
    if isinstance(place, Path):
        with opened(place) as file:
            return index_of(file)
    here = place.tell()
    size = place.seek(0, os.SEEK_END)
    place.seek(max(0, size - 8))
    length, magic = struct.unpack("<I4s", place.read(8).rjust(8, b"\0"))
    if magic != _MAGIC or length > size - 8:
        raise ValueError("the file does not end like a Parquet file")
    place.seek(size - 8 - length)
    found = _Thrift(place.read(length)).structure()
    place.seek(here)
    groups = [group.get(1, []) for group in found.get(4, [])]
    return [[_column(each.get(3, {})) for each in columns] for columns in groups]


def _column(said: dict[int, Any]) -> ColumnSize:
    path, values = b".".join(said.get(3, [])).decode("utf-8", "replace"), said.get(5, 0)
    if not isinstance(values, int) or values < 0:
        raise ValueError(f"column {path} has {values} values")
    return ColumnSize(path, values, 11 in said)


class _Thrift:
    """Thrift's compact protocol: structures as fields by number. Each value takes at least a byte, so the work is
    bounded by the length of `data`.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.depth = data, 0, 0

    def structure(self) -> dict[int, Any]:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError(f"the index is nested deeper than {_DEEPEST} levels")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._whole()
            fields[number] = (head & 15) == 1 if head & 15 in (1, 2) else self._value(head & 15)
        self.depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._whole()
        if kind in (7, 8):
            return self._taken(8 if kind == 7 else self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            count = self._unsigned() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in self._counted(count)]
        if kind == 11:
            count = self._unsigned()
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in self._counted(count)]
        if kind == 12:
            return self.structure()
        raise ValueError(f"the index has a value of the unknown type {kind}")

    def _counted(self, count: int) -> range:
        if count > len(self.data) - self.place:
            raise ValueError(f"the index has a list of {count} in {len(self.data) - self.place} bytes")
        return range(count)

    def _taken(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        if len(found) < count:
            raise ValueError("the index ends inside a value")
        self.place += count
        return found

    def _byte(self) -> int:
        return self._taken(1)[0]

    def _unsigned(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found
            if shift > 63:
                raise ValueError("the index has a number of more than 64 bits")

    def _whole(self) -> int:
        found = self._unsigned()
        return (found >> 1) ^ -(found & 1)


def check_table(index: Index, what: str, size: int, names: Collection[str]) -> None:
    """UserError if the columns would become more Python objects than a file of `size` bytes may expand to."""
    columns = (column for group in index for column in group if column.path.split(".")[0] in names)
    check_expansion(what, size, sum(column.values for column in columns) * _CELL)


def rows_at_once(index: Index, file: Any, group: int, name: str, most: int) -> int:
    """How many rows of a group may be decoded together: a string that is stored once can be repeated in each of them.

    `file` belongs to the index and reads the column's strings as dictionaries.
    """
    if not any(column.path == name and column.dictionary for column in index[group]):
        return most
    first = next(file.iter_batches(batch_size=1, row_groups=[group], columns=[name]), None)
    texts = () if first is None else first.column(0).dictionary
    longest = max((len(text.as_buffer() or b"") for text in texts), default=0)
    return max(1, min(most, _HELD // max(1, longest)))
