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
from headway.io.files import check_expansion, open_file

_MAX_DICTIONARY = 1 << 26  # bytes of dictionary-encoded strings decoded at once
_CELL_SIZE = 64  # approximate bytes of a value as a Python object
_MAGIC, _MAX_DEPTH = b"PAR1", 32


class ColumnSize(NamedTuple):
    """A column of a row group in a file's index."""

    path: str
    values: int
    dictionary: bool  # whether repeated strings are stored once


Index = list[list[ColumnSize]]  # per row group


def import_parquet(source: Path | IO[bytes], extra: str) -> Any:
    """The module pyarrow.parquet; UserError that names `source` if the package for that extra is missing."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{source} needs the package pyarrow; run pip install 'headway[{extra}]'") from error
    return pyarrow.parquet


def open_parquet(source: Path | IO[bytes], extra: str, columns: Collection[str] = ()) -> Any:
    """Open a ParquetFile; strings of `columns` are read as dictionaries. UserError if pyarrow (of that extra) is
    missing or the path is not a regular file; pyarrow's own exceptions if it is not Parquet.
    """
    parquet = import_parquet(source, extra)
    if isinstance(source, Path):
        open_file(source).close()  # a pipe would block the library
    return parquet.ParquetFile(source, read_dictionary=list(columns) or None)


def read_index(source: Path | IO[bytes]) -> Index:
    """The columns of each row group. ValueError for a file with an invalid index."""
    if isinstance(source, Path):
        with open_file(source) as file:
            return read_index(file)
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(max(0, size - 8))
    length, magic = struct.unpack("<I4s", source.read(8).rjust(8, b"\0"))
    if magic != _MAGIC or length > size - 8:
        raise ValueError("the file does not end like a Parquet file")
    source.seek(size - 8 - length)
    footer = _ThriftReader(source.read(length)).structure()
    source.seek(position)
    index: Index = []
    for group in footer.get(4, []):
        columns: list[ColumnSize] = []
        for metadata in (column.get(3, {}) for column in group.get(1, [])):
            path, values = b".".join(metadata.get(3, [])).decode("utf-8", "replace"), metadata.get(5, 0)
            if not isinstance(values, int) or values < 0:
                raise ValueError(f"column {path} has {values} values")
            columns.append(ColumnSize(path, values, 11 in metadata))
        index.append(columns)
    return index


class _ThriftReader:
    """Thrift's compact protocol: structures as fields by number. Each value takes at least a byte, so the work is
    bounded by the length of `data`.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.depth = data, 0, 0

    def structure(self) -> dict[int, Any]:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"the index is nested deeper than {_MAX_DEPTH} levels")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = (head & 15) == 1 if head & 15 in (1, 2) else self._value(head & 15)
        self.depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            return self._read(8 if kind == 7 else self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            count = self._unsigned() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in self._item_range(count)]
        if kind == 11:
            count = self._unsigned()
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in self._item_range(count)]
        if kind == 12:
            return self.structure()
        raise ValueError(f"the index has a value of the unknown type {kind}")

    def _item_range(self, count: int) -> range:
        if count > len(self.data) - self.position:
            raise ValueError(f"the index has a list of {count} in {len(self.data) - self.position} bytes")
        return range(count)

    def _read(self, count: int) -> bytes:
        chunk = self.data[self.position : self.position + count]
        if len(chunk) < count:
            raise ValueError("the index ends inside a value")
        self.position += count
        return chunk

    def _byte(self) -> int:
        return self._read(1)[0]

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("the index has a number of more than 64 bits")

    def _zigzag(self) -> int:
        encoded = self._unsigned()
        return (encoded >> 1) ^ -(encoded & 1)


def check_table(index: Index, source: str, size: int, names: Collection[str]) -> None:
    """UserError if the columns would expand to more Python objects than allowed for a file of `size` bytes."""
    columns = (column for group in index for column in group if column.path.split(".")[0] in names)
    check_expansion(source, size, sum(column.values for column in columns) * _CELL_SIZE)


def max_rows_at_once(index: Index, file: Any, group: int, name: str, max_rows: int) -> int:
    """How many rows of a group may be decoded together: a string that is stored once can be repeated in each of them.

    `file` belongs to the index and reads the column's strings as dictionaries.
    """
    if not any(column.path == name and column.dictionary for column in index[group]):
        return max_rows
    first = next(file.iter_batches(batch_size=1, row_groups=[group], columns=[name]), None)
    strings = () if first is None else first.column(0).dictionary
    max_length = max((len(text.as_buffer() or b"") for text in strings), default=0)
    return max(1, min(max_rows, _MAX_DICTIONARY // max(1, max_length)))
