"""Reading the files of published tokenizers: with a limit, as data only, every failure a UserError."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.parsing import DuplicateKeyError, parse_json
from headway.received import opened

LIMIT = 1 << 27  # bytes; the largest published vocabularies have some 40 MB
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_bytes(path: Path) -> bytes:
    """All of a file that is not too large for a tokenizer, not empty and no pickle."""
    try:
        size = path.stat().st_size
        if size > LIMIT:
            raise UserError(f"{path} has {size:,} bytes, too many for a tokenizer; give its file, of {LIMIT:,} at most")
        with opened(path) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not data:
        raise UserError(f"{path} is empty; download it again")
    if data.startswith(_PICKLES):
        raise UserError(f"{path} is a pickle, which can run code when it is opened; give the tokenizer's own file")
    return data


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; download it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds."""
    return parse_object(read_text(path), path)


def parse_object(text: str, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except DuplicateKeyError as error:
        raise UserError(f"{path} has {error}; keep one of them, or download it again") from error
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise UserError(f"{path} is not JSON: {reason}; download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__} where a mapping is wanted; download it again")
    return found


def object_or_empty(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file that need not be there."""
    return read_object(path) if path.is_file() else {}


def first_file(directory: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` that lies in a folder."""
    return next((directory / name for name in names if (directory / name).is_file()), None)


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """What the tokenizers library says of a file, as a UserError: it raises bare Exceptions, and panics."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be read as a tokenizer ({reason}); download it again") from None


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library gave up in the middle of its work, which is no Exception."""
    return type(error).__name__ == "PanicException"
