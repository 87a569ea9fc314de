"""Texts in Parquet files: the column "text", a few thousand rows at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from headway.data.files import File, blocks
from headway.errors import UserError, nearest

_COLUMN = "text"
_ROWS = 1024


def parquet_texts(file: File) -> Iterator[str]:
    """The texts of a .parquet file, a compressed one or one in an archive included."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file} needs the package pyarrow; pip install 'headway[data]'") from error
    row = 0
    with tempfile.TemporaryFile() as unpacked:
        whole: Any = file.path
        if file.member is not None or file.path.suffix.lower() != ".parquet":
            # Parquet is read from its end, so a compressed one is unpacked to disk (not to memory) first.
            for block in blocks(file):
                unpacked.write(block)
            whole = unpacked
        try:
            table = pyarrow.parquet.ParquetFile(whole)
            _check_column(file, table.schema_arrow)
            for batch in table.iter_batches(batch_size=_ROWS, columns=[_COLUMN]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise UserError(f"{file}, row {row} has no text; drop such rows")
                    yield text
        except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
            raise UserError(f"{file} is damaged or no Parquet file ({error}); fetch it again") from error


def _check_column(file: File, schema: Any) -> None:
    if _COLUMN not in schema.names:
        raise UserError(f"{file} has no column {_COLUMN!r}; {nearest(_COLUMN, schema.names)}")
    if str(schema.field(_COLUMN).type) not in ("string", "large_string", "string_view"):
        raise UserError(f"{file}: column {_COLUMN!r} is of type {schema.field(_COLUMN).type}; give strings")
