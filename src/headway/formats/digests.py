"""Digests of a folder's files, written last: they reveal a changed, missing or truncated file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from headway.errors import UserError
from headway.formats.durable import read_json
from headway.safe_io import open_file

FILE = "digests.json"
_VERSION, _MAX_FILES = 1, 50_000  # format version, and files per folder


def seal(draft: Path) -> None:
    """Write digests.json in a draft folder of `atomic_write`, which syncs it with the rest."""
    (draft / FILE).write_text(json.dumps(compute_digests(draft), indent=2) + "\n", encoding="utf-8")


def compute_digests(folder: Path, excluded: Collection[str] = ()) -> dict[str, Any]:
    """Return the content of digests.json for a folder: all files except hidden ones and those in the subfolders
    `excluded`.
    """
    files = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in _files(folder, excluded)}
    return {"version": _VERSION, "files": files}


def is_sealed(folder: Path) -> bool:
    """Whether the folder has digests of its files."""
    return (folder / FILE).is_file()


def find_damage(folder: Path) -> list[str]:
    """Return one line per file that has changed since the folder was sealed. UserError for unreadable digests."""
    problems = []
    for name, (size, digest) in read_digests(folder).items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{path} has {path.stat().st_size:,} bytes, not {size:,}")
        elif _digest(path) != digest:
            problems.append(f"{path} has changed")
    return problems


def read_digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the bytes and digest of each file, by its path relative to the folder."""
    path = folder / FILE
    content = read_json(path)
    try:
        if content["version"] != _VERSION:
            raise UserError(
                f"{path} has version {content['version']}, but headway reads {_VERSION}; install a newer version"
            )
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} contains no digests; restore it from a copy") from None
    if len(entries) > _MAX_FILES:
        raise UserError(f"{path} names {len(entries):,} files, more than {_MAX_FILES:,}; restore it from a copy")
    for name in entries:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise UserError(f"{path} names {name!r}, which is outside the folder; restore it from a copy")
    return entries


def _files(folder: Path, excluded: Collection[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts[0] not in excluded and parts != (FILE,):
            yield "/".join(parts), path


def _digest(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check the disk, or restore it from a copy"
        ) from error
