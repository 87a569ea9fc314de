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

from headway.data.columns import check_header
from headway.data.files import kind_of
from headway.data.sources import PAIR_KINDS, TEXT_KINDS
from headway.data.tables import TABLE_KINDS
from headway.drafts import draft_of
from headway.errors import UserError
from headway.given import shown

Paths = str | Path | Sequence[str | Path]
Data = str | Path | Iterable[Any]  # files, or in-memory data as `data_paths` accepts

_OF_TEXTS = ("text", "masked")  # domains
_OF_ROWS = (*_OF_TEXTS, "translation", "understanding", "chat", "vision", "audio", "image_text", "forecast")
_FILES = {*TEXT_KINDS, *PAIR_KINDS, *TABLE_KINDS}
_JUDGED = 1000  # strings that are examined to decide whether they are paths or texts
_MISSING = ("NAType", "NaTType")  # pandas' types


@contextmanager
def kept(
    data: Data | None, domain: str, directory: Path | None = None, record: str = "recipe.json"
) -> Iterator[Paths | None]:
    """`data` as paths: paths are returned unchanged, anything else is written to a JSON lines file.

    Accepts a pandas or polars table, a Dataset, or any iterable of rows (mappings; also strings in text domains), which
    is read once, row by row. A list of strings contains texts if none of the first is a path and most contain spaces.
    The file is in the folder `data` of the run's `directory`, where its recipe finds it again, and is named by a hash
    of its content. It is removed if the `record` in `directory` does not name it. Without a directory it exists only
    inside the context. UserError for data that are not such rows.
    """
    if data is None or isinstance(data, (str, Path)):
        yield data
        return
    items = iter(_mappings(data))
    first = list(islice(items, _JUDGED))
    if all(isinstance(item, (str, Path)) for item in first) and not _texts(first, domain):
        yield [*first, *items]
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory())) if directory is None else directory / "data"
        path, new = _written(_rows(chain(first, items), domain), folder)
        try:
            yield path
        finally:
            file = None if directory is None else directory / record
            read = file is not None and file.is_file() and path.name in file.read_text(encoding="utf-8")
            if directory is not None and new and not read:
                _remove(path)


def _texts(items: list[Any], domain: str) -> bool:
    """Whether the strings are texts, not paths."""
    if domain not in _OF_TEXTS or not items or any(isinstance(item, Path) or _exists(item) for item in items):
        return False
    spaced = [item for item in items if len(item.split()) > 1 and kind_of(item) not in _FILES]
    return 2 * len(spaced) > len(items)


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or with characters that a name cannot contain
        return False


def _mappings(data: Any) -> Iterable[Any]:
    """The rows of a table, or the items of an iterable."""
    if hasattr(data, "iter_rows"):  # polars
        return data.iter_rows(named=True)
    if hasattr(data, "itertuples"):  # pandas
        names = list(data.columns)
        check_header("the table", [str(name) for name in names])
        return (dict(zip(names, values)) for values in data.itertuples(index=False, name=None))
    if isinstance(data, Mapping):
        name = next(iter(data), "train")
        raise UserError(f"the data are {shown(data)} of several parts; pass one of them, as in data[{name!r}]")
    if not isinstance(data, Iterable) or isinstance(data, (bytes, bytearray)):
        raise UserError(f"the data are {shown(data)}; pass paths, a table, or an iterable of rows")
    return data


def _rows(items: Iterator[Any], domain: str) -> Iterator[dict[str, Any]]:
    """Each row as a JSON object."""
    for number, item in enumerate(items, 1):
        if domain not in _OF_ROWS:
            raise UserError(f"{domain} recipes read files, but the data contain {shown(item)}; pass paths of files")
        row = {"text": item} if isinstance(item, str) and domain in _OF_TEXTS else item
        if not isinstance(row, Mapping):
            wanted = "strings, or mappings with a text" if domain in _OF_TEXTS else "mappings from column to value"
            raise UserError(f"row {number} of the data is {shown(item)}; pass {wanted}")
        found = {str(key): _plain(value, f"row {number}: {key!r}") for key, value in row.items()}
        if len(found) < len(row):  # such as 1 and "1"
            check_header(f"row {number} of the data", [str(key) for key in row], "keys")
        if isinstance(found.get("path"), str):  # otherwise it would be relative to the new file
            found["path"] = os.path.abspath(os.path.expanduser(found["path"]))
        yield found


def _plain(value: Any, where: str) -> Any:
    """A value as JSON; the tables' markers of missing values become null."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (bool, type(None))) or type(value).__name__ in _MISSING:
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
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    raise UserError(f"{where} is {shown(value)}; pass strings, numbers, or lists of them")


def _written(rows: Iterator[dict[str, Any]], folder: Path) -> tuple[Path, bool]:
    """Write the rows to a file named by a hash of its content; returns its path and whether it is new."""
    unfinished, digest = draft_of(folder / "rows"), hashlib.blake2b(digest_size=8)
    first = next(rows, None)  # before the folder is created
    if first is None:
        raise UserError("the data contain no rows; pass at least one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            for row in chain([first], rows):
                line = f"{json.dumps(row)}\n".encode()
                digest.update(line)
                file.write(line)
        path = folder / f"{digest.hexdigest()}.jsonl"
        new = not path.exists()
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another directory") from None
    finally:
        if unfinished.exists():
            _remove(unfinished)
    return path, new


def _remove(path: Path) -> None:
    """Remove a file that was written for a run, and the folders that were created only for it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is not empty
        path.parent.rmdir()
        path.parent.parent.rmdir()
