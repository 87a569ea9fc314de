"""Read the files of published tokenizers: limited in size, as data only, and with UserErrors for all failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.io.files import open_file
from headway.io.json_files import DuplicateKeyError, parse_json

MAX_BYTES = 1 << 27  # bytes; the largest published vocabularies have about 40 MB
_PICKLE_HEADERS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises UserError if it is too large for a tokenizer, empty or a pickle."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes, more than the limit of {MAX_BYTES:,}; use a tokenizer file")
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not content:
        raise UserError(f"{path} is empty; download it again")
    if content.startswith(_PICKLE_HEADERS):
        raise UserError(f"{path} is a pickle, which can run code when loaded; use the original tokenizer file")
    return content


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; download it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    return parse_object(read_text(path), path)


def parse_object(text: str, path: Path) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except DuplicateKeyError as error:
        raise UserError(f"{path} has {error}; keep one of them, or download it again") from error
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise UserError(f"{path} is not JSON: {reason}; download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}, not a mapping; download it again")
    return content


def object_or_empty(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if the file is missing."""
    return read_object(path) if path.is_file() else {}


def first_file(directory: Path, names: Iterable[str]) -> Path | None:
    """The first file in `names` that exists in a folder."""
    return next((directory / name for name in names if (directory / name).is_file()), None)


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turn errors from the tokenizers library, which raises bare Exceptions and panics, into UserErrors."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the library is not an Exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be read as a tokenizer ({reason}); download it again") from None
