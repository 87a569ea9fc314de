"""Data that are in memory (tables, rows, texts), kept as a file of JSON lines that can be read again."""

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
Data = str | Path | Iterable[Any]  # files, or what `kept` takes beside them

_OF_TEXTS = ("text", "masked")  # domains
_OF_ROWS = (*_OF_TEXTS, "translation", "understanding", "chat", "vision", "audio", "image_text", "forecast")
_FILES = {*TEXT_KINDS, *PAIR_KINDS, *TABLE_KINDS}
_JUDGED = 1000  # strings by which is told whether they are paths or texts
_MISSING = ("NAType", "NaTType")  # as pandas has them


@contextmanager
def kept(
    data: Data | None, domain: str, directory: Path | None = None, record: str = "recipe.json"
) -> Iterator[Paths | None]:
    """`data` as paths: those of files as they are, anything else written to a file of JSON lines.

    That may be a table of pandas or polars, a Dataset, or any iterable of rows (mappings) or, for a domain of texts, of
    texts; it is read once, a row at a time. A list of strings is of texts where none of the first is a path and most
    have spaces. The file lies in `data` below the `directory` of a run, where its recipe finds it again, under a name
    that its content decides; if the `record` that is written there does not name it, it is removed. Without a directory
    it lasts as long as the context. UserError for what cannot be such rows.
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
    """Whether strings are texts, not paths."""
    if domain not in _OF_TEXTS or not items or any(isinstance(item, Path) or _exists(item) for item in items):
        return False
    spaced = [item for item in items if len(item.split()) > 1 and kind_of(item) not in _FILES]
    return 2 * len(spaced) > len(items)


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or with what no name holds
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
        raise UserError(f"the data are {shown(data)} of several parts; give one of them, as in data[{name!r}]")
    if not isinstance(data, Iterable) or isinstance(data, (bytes, bytearray)):
        raise UserError(f"the data are {shown(data)}; give paths, a table, or an iterable of rows")
    return data


def _rows(items: Iterator[Any], domain: str) -> Iterator[dict[str, Any]]:
    """Each row as JSON has it."""
    for number, item in enumerate(items, 1):
        if domain not in _OF_ROWS:
            raise UserError(f"recipes of {domain} read files, and {shown(item)} was given; give the paths of files")
        row = {"text": item} if isinstance(item, str) and domain in _OF_TEXTS else item
        if not isinstance(row, Mapping):
            wanted = "texts, or mappings with a text" if domain in _OF_TEXTS else "mappings from column to value"
            raise UserError(f"row {number} of the data is {shown(item)}; give {wanted}")
        found = {str(key): _plain(value, f"row {number}: {key!r}") for key, value in row.items()}
        if len(found) < len(row):  # as of 1 and "1"
            check_header(f"row {number} of the data", [str(key) for key in row], "keys")
        if isinstance(found.get("path"), str):  # else it would be sought beside the file that is written
            found["path"] = os.path.abspath(os.path.expanduser(found["path"]))
        yield found


def _plain(value: Any, where: str) -> Any:
    """A value as JSON has it; what tables have for nothing becomes null."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (bool, type(None))) or type(value).__name__ in _MISSING:
        return value if isinstance(value, bool) else None
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, date):  # or a time, such as pandas'
        return value.isoformat()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not math.isinf(value):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    raise UserError(f"{where} is {shown(value)}; give texts, numbers, or lists of them")


def _written(rows: Iterator[dict[str, Any]], folder: Path) -> tuple[Path, bool]:
    """The file of the rows, named by what is in it, and whether it was not there before."""
    unfinished, digest = draft_of(folder / "rows"), hashlib.blake2b(digest_size=8)
    first = next(rows, None)  # before the folder is made
    if first is None:
        raise UserError("the data hold no rows; give some")
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
    """Remove a file that was written for a run, and the folders that were made for it alone."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # something else is there
        path.parent.rmdir()
        path.parent.parent.rmdir()
