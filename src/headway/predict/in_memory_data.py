"""In-memory data (tables, rows, strings), stored as a JSON lines file that training can read again."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from headway.data.corpus import PAIR_KINDS, TEXT_KINDS
from headway.data.input_files import file_kind
from headway.data.table_files import TABLE_KINDS, check_column_names
from headway.errors import UserError
from headway.io.arguments import format_value
from headway.io.durable import temporary_path
from headway.io.remote import remote_url

Paths = str | Path | Sequence[str | Path]
Data = str | Path | Iterable[Any]  # files, or in-memory data as `data_paths` accepts

_TEXT_DOMAINS = ("text", "masked")  # domains
_ROW_DOMAINS = (
    *_TEXT_DOMAINS, "translation", "understanding", "chat", "reward", "vision", "audio", "image_text", "forecast",
)  # fmt: skip
_FILE_KINDS = {*TEXT_KINDS, *PAIR_KINDS, *TABLE_KINDS}
_EXAMINED = 1000  # number of strings examined to distinguish paths from texts
_MISSING_TYPES = ("NAType", "NaTType")  # pandas' types


@contextmanager
def data_paths(
    data: Data | None, domain: str, directory: Path | None = None, record: str = "recipe.json"
) -> Iterator[Paths | None]:
    """`data` as paths: paths are returned unchanged, anything else is written to a JSON lines file.

    Accepts a pandas or polars table, a Dataset, or any iterable of rows (mappings; also strings in text domains), which
    is read once, row by row. Strings are taken as texts if none of the first ones is a path and most contain spaces.
    The file is stored in the folder `data` of the run's `directory`, where its recipe finds it again, and is named by a
    hash of its content. It is removed if the `record` in `directory` does not name it. Without a directory it exists
    only inside the context. UserError for data that are not such rows.
    """
    if data is None or isinstance(data, (str, Path)):
        yield data
        return
    items = iter(_table_rows(data))
    first = list(islice(items, _EXAMINED))
    if all(isinstance(item, (str, Path)) for item in first) and not _are_texts(first, domain):
        yield [*first, *items]
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory())) if directory is None else directory / "data"
        path, is_new = _write_rows(_json_rows(chain(first, items), domain), folder)
        try:
            yield path
        finally:
            file = None if directory is None else directory / record
            is_recorded = file is not None and file.is_file() and path.name in file.read_text(encoding="utf-8")
            if directory is not None and is_new and not is_recorded:
                _remove(path)


def _are_texts(items: list[Any], domain: str) -> bool:
    """Whether the strings are texts, not paths: none of them exists, and most contain spaces."""
    if domain not in _TEXT_DOMAINS or not items or any(isinstance(item, Path) for item in items):
        return False
    for item in items:
        # A name may be too long, or have characters that a name cannot contain.
        with suppress(OSError, ValueError, RuntimeError):
            if item and Path(item).expanduser().exists():
                return False
    with_spaces = [item for item in items if len(item.split()) > 1 and file_kind(item) not in _FILE_KINDS]
    return 2 * len(with_spaces) > len(items)


def _table_rows(data: Any) -> Iterable[Any]:
    """The rows of a table, or the items of an iterable."""
    if hasattr(data, "iter_rows"):  # polars
        return data.iter_rows(named=True)
    if hasattr(data, "itertuples"):  # pandas
        names = list(data.columns)
        check_column_names("the table", [str(name) for name in names])
        return (dict(zip(names, values)) for values in data.itertuples(index=False, name=None))
    if isinstance(data, Mapping):
        name = next(iter(data), "train")
        raise UserError(f"the data are {format_value(data)} with several parts; pass one of them, as in data[{name!r}]")
    if not isinstance(data, Iterable) or isinstance(data, (bytes, bytearray)):
        raise UserError(f"the data are {format_value(data)}; pass paths, a table, or an iterable of rows")
    return data


def _json_rows(items: Iterator[Any], domain: str) -> Iterator[dict[str, Any]]:
    """Each row as a JSON object."""
    for position, item in enumerate(items, 1):
        if domain not in _ROW_DOMAINS:
            raise UserError(f"{domain} recipes read files, but the data contain {format_value(item)}; pass file paths")
        row = {"text": item} if isinstance(item, str) and domain in _TEXT_DOMAINS else item
        if not isinstance(row, Mapping):
            expected = (
                "strings, or mappings with a text" if domain in _TEXT_DOMAINS else "mappings from column to value"
            )
            raise UserError(f"row {position} of the data is {format_value(item)}; pass {expected}")
        json_row = {str(key): _to_json(value, f"row {position}: {key!r}") for key, value in row.items()}
        if len(json_row) < len(row):  # such as 1 and "1"
            check_column_names(f"row {position} of the data", [str(key) for key in row], "keys")
        path = json_row.get("path")
        if isinstance(path, str) and remote_url(path) is None:  # otherwise it would be relative to the new file
            json_row["path"] = os.path.abspath(os.path.expanduser(path))
        yield json_row


def _to_json(value: Any, location: str) -> Any:
    """A value as JSON; the tables' missing-value markers become null."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (bool, type(None))) or type(value).__name__ in _MISSING_TYPES:
        return value if isinstance(value, bool) else None
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, date):  # or a datetime, such as pandas'
        return value.isoformat()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not math.isinf(value):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _to_json(item, location) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, location) for item in value]
    raise UserError(f"{location} is {format_value(value)}; pass strings, numbers, or lists of them")


def _write_rows(rows: Iterator[dict[str, Any]], folder: Path) -> tuple[Path, bool]:
    """Write the rows to a file named by a hash of its content; returns its path and whether it is new."""
    temporary, digest = temporary_path(folder / "rows"), hashlib.blake2b(digest_size=8)
    first = next(rows, None)  # before the folder is created
    if first is None:
        raise UserError("the data contain no rows; pass at least one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for row in chain([first], rows):
                line = f"{json.dumps(row)}\n".encode()
                digest.update(line)
                file.write(line)
        path = folder / f"{digest.hexdigest()}.jsonl"
        is_new = not path.exists()
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{folder} is not writable ({error.strerror}); choose another directory") from None
    finally:
        if temporary.exists():
            _remove(temporary)
    return path, is_new


def _remove(path: Path) -> None:
    """Remove a file that was written for a run, and the folders that were created only for it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is not empty
        path.parent.rmdir()
        path.parent.parent.rmdir()
