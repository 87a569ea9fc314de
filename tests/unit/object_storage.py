"""Object storage in memory, behind s3://, that fails on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headway.io import remote


class Storage(MemoryFileSystem):
    """Files, the faults of the next requests (an error, or the bytes after which an answer ends), and fetched paths."""

    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[list[Exception | int | None]] = []
    fetched: ClassVar[list[str]] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        self.fetched.append(path)
        return super().cat_file(path, start, end)[:fault]


def connect(monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Empty storage behind s3://, with repeats that do not wait."""
    files = Storage()
    for name in ("store", "pseudo_dirs", "faults", "fetched"):
        monkeypatch.setattr(Storage, name, {"store": {}, "pseudo_dirs": [""]}.get(name, []))
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (files, url.removeprefix("s3:/")))
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0)
    return files


def upload(storage: Storage, folder: Path, path: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            storage.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
