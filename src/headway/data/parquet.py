"""Parquet files whose sizes are looked at before anything in them is decoded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from headway.errors import UserError
from headway.received import check_expansion, opened

_HELD = 1 << 26  # bytes of texts that are decoded at once, where they are said once and repeated
_CELL = 64  # bytes, about, of a value as Python's object


def open_parquet(place: Path | IO[bytes], extra: str, columns: Collection[str] = ()) -> Any:
    """A ParquetFile; texts of `columns` come as dictionaries. UserError where pyarrow, of that extra, is missing, and
    for what is no plain file; for what is no Parquet, whatever pyarrow raises.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{place} needs the package pyarrow; pip install 'headway[{extra}]'") from error
    if isinstance(place, Path):
        opened(place).close()  # what is no plain file would keep the library waiting
    return pyarrow.parquet.ParquetFile(place, read_dictionary=list(columns) or None)


def check_table(file: Any, what: str, size: int, names: Collection[str]) -> None:
    """UserError where columns make more of Python's objects than a file of `size` bytes may, as it says of them."""
    values = 0
    for group in range(file.metadata.num_row_groups):
        part = file.metadata.row_group(group)
        columns = (part.column(number) for number in range(part.num_columns))
        values += sum(each.num_values for each in columns if each.path_in_schema.split(".")[0] in names)
    check_expansion(what, size, values * _CELL)


def rows_at_once(file: Any, group: int, column: str, most: int) -> int:
    """How many rows of a group may be decoded together: a text that is said once can be repeated in each of them.

    In the file that is asked, texts of that column come as dictionaries.
    """
    part = file.metadata.row_group(group)
    found = [part.column(number) for number in range(part.num_columns)]
    if not any(each.path_in_schema == column and each.has_dictionary_page for each in found):
        return most
    first = next(file.iter_batches(batch_size=1, row_groups=[group], columns=[column]), None)
    texts = () if first is None else first.column(0).dictionary
    longest = max((len(text.as_buffer() or b"") for text in texts), default=0)
    return max(1, min(most, _HELD // max(1, longest)))
