"""Folders of arrays on disk, written atomically: built under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from headway.errors import UserError
from headway.io.cache import cache_errors, file_lock
from headway.io.cache import cache_root as cache_root  # for the callers of this module

_DIGEST_LENGTH = 32  # characters
_DEADLINE: ContextVar[float] = ContextVar("latest", default=math.inf)


@contextmanager
def build_deadline(seconds: float) -> Iterator[None]:
    """Builds in this context raise a UserError if they take longer than `seconds`."""
    token = _DEADLINE.set(time.perf_counter() + seconds)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def cache_key(kind: str, *parts: object) -> str:
    """The name, below the cache root, for data that depends on `parts`."""
    return f"{kind}-{hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()}"


def open_or_build(final: Path, build: Callable[[Path], None]) -> Path:
    """The folder `final`; if it is missing, `build(part)` fills a temporary folder next to it.

    If several processes need it, one builds and the others wait. A killed process leaves a `*.part`, which the next
    builder of the same folder removes. A full disk is a UserError.
    """
    if final.is_dir():
        return final
    with cache_errors(final.parent), file_lock(final.parent / f"{final.name}.lock"):
        if not final.is_dir():
            for leftover in final.parent.glob(f"{final.name}.*.part"):
                shutil.rmtree(leftover, ignore_errors=True)
            part = final.parent / f"{final.name}.{secrets.token_hex(4)}.part"
            part.mkdir()
            try:
                build(part)
                _sync(part)
                try:
                    part.rename(final)
                except OSError:
                    # Without working locks, another process may have been first, with equal content.
                    if not final.is_dir():
                        raise
                _sync(final.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return final


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing to a path that the user chose with --out into UserErrors."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); choose another path with --out") from error


def check_output_path(path: Path) -> None:
    """Create the folder of an --out file before any work. UserError if it is not writable."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()


def _sync(folder: Path) -> None:
    """Sync a folder's entries to disk; systems that cannot open folders do not need it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class ColumnWriter:
    """Append arrays to files in a folder: `with ColumnWriter(folder, {"ids": np.uint16}) as columns: ...`"""

    def __init__(self, folder: Path, types: Mapping[str, Any]) -> None:
        self._folder = folder
        self._types = {name: np.dtype(dtype) for name, dtype in types.items()}
        self._deadline = _DEADLINE.get()

    def __enter__(self) -> ColumnWriter:
        with ExitStack() as stack:
            self._files = {name: stack.enter_context(open(self._folder / f"{name}.bin", "wb")) for name in self._types}
            self._open_files = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._open_files:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())

    def append(self, name: str, values: Any) -> None:
        self._files[name].write(np.asarray(values, dtype=self._types[name]).tobytes())
        if time.perf_counter() > self._deadline:
            raise UserError("reading the data takes too long; raise --minutes, or use less data")


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    with open(folder / "info.json", "w") as file:
        json.dump(info, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def read_info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "info.json").read_text())


def column_digest(folder: Path, *names: str) -> str:
    """A content hash of columns, computed once (about 1 GB/s) and stored next to them."""
    digest_path = folder / f"{'-'.join(names)}.digest"
    with suppress(OSError, ValueError):
        stored = digest_path.read_text(encoding="ascii")
        if len(stored) == _DIGEST_LENGTH and not stored.strip("0123456789abcdef"):
            return stored
    digest = hashlib.blake2b(digest_size=_DIGEST_LENGTH // 2)
    for name in names:
        with open(folder / f"{name}.bin", "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    part = folder / f".{secrets.token_hex(4)}.digest"
    with suppress(OSError):  # if it cannot be stored, it is computed again
        try:
            part.write_text(digest.hexdigest(), encoding="ascii")
            part.replace(digest_path)
        finally:
            part.unlink(missing_ok=True)
    return digest.hexdigest()


def read_column(folder: Path, name: str, dtype: Any, length: int) -> np.ndarray:
    """A memory-mapped array written by `ColumnWriter`; UserError if its length has changed."""
    path = folder / f"{name}.bin"
    size = path.stat().st_size if path.exists() else 0
    if size != length * np.dtype(dtype).itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, not {length * np.dtype(dtype).itemsize:,}; remove {folder} to rebuild it"
        )
    if length == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
