"""Digests of the files of a folder, written last: they reveal a changed, missing or truncated file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from headway.errors import UserError
from headway.formats.durable import read_json
from headway.received import opened

FILE = "digests.json"
_VERSION, _MOST = 1, 50_000  # files per folder


def seal(draft: Path) -> None:
    """Write digests.json in a draft folder of `atomic_write`, which syncs it with the rest."""
    (draft / FILE).write_text(json.dumps(digests(draft), indent=2) + "\n", encoding="utf-8")


def digests(folder: Path, apart: Collection[str] = ()) -> dict[str, Any]:
    """Return the content of digests.json for a folder: all files except hidden ones and those in the subfolders
    `excluded`.
    """
    files = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in _files(folder, apart)}
    return {"version": _VERSION, "files": files}


def is_sealed(folder: Path) -> bool:
    """Whether the folder has digests of its files."""
    return (folder / FILE).is_file()


def damage(folder: Path) -> list[str]:
    """Return one line per file that has changed since the folder was sealed. UserError for unreadable digests."""
    found = []
    for name, (size, digest) in sealed(folder).items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != size:
            found.append(f"{path} has {path.stat().st_size:,} bytes, not {size:,}")
        elif _digest(path) != digest:
            found.append(f"{path} has changed")
    return found


def sealed(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the bytes and digest of each file, by its path relative to the folder."""
    path = folder / FILE
    said = read_json(path)
    try:
        if said["version"] != _VERSION:
            raise UserError(f"{path} has version {said['version']}, headway reads {_VERSION}; install a newer version")
        found = {name: (int(each["bytes"]), str(each["sha256"])) for name, each in said["files"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} contains no digests; restore it from a copy") from None
    if len(found) > _MOST:
        raise UserError(f"{path} names {len(found):,} files, more than {_MOST:,}; restore it from a copy")
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise UserError(f"{path} names {name!r}, which is outside the folder; restore it from a copy")
    return found


def _files(folder: Path, apart: Collection[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts[0] not in apart and parts != (FILE,):
            yield "/".join(parts), path


def _digest(path: Path) -> str:
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check the disk, or restore it from a copy"
        ) from error
