"""Durable writing: files and folders exist either completely or not at all. They are written to a draft, synced, then
renamed; digests of a folder's files, written last, reveal a changed, missing or truncated file.

A killed process leaves its drafts behind. The next process that writes in the same folder removes them, but keeps those
of running processes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from headway.errors import UserError
from headway.io.files import open_file
from headway.io.json_files import DuplicateKeyError, parse_json

_TEMPORARY_NAME = re.compile(r"\..+\.(\d{1,9})(?:-([0-9a-f]{8}))?\.(?:draft|removed)(?:\.\w+)*", re.DOTALL)
_FOREIGN_AGE = 86_400  # seconds without a change after which a file from another machine or boot is removed
_MAX_NAME_BYTES, _KEPT_CHARACTERS = 200, 40  # of a name (systems allow 255 with our suffix); kept of a longer one
_LARGE_FOLDER = 1000  # a folder with at least this many entries is cleaned only once per process
_cleaned_folders: set[Path] = set()  # folders of this size that were cleaned


def temporary_path(path: Path, purpose: str = "draft") -> Path:
    """The temporary path next to `path` under which this process writes it, or moves it with the purpose "removed"."""
    folder = path.parent
    if folder not in _cleaned_folders and clean(folder) > _LARGE_FOLDER:
        _cleaned_folders.add(folder)
    name = path.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f"{name[:_KEPT_CHARACTERS]}-{blake2b(os.fsencode(name), digest_size=8).hexdigest()}"
    return path.with_name(f".{name}.{os.getpid()}-{machine_id()}.{purpose}")


def clean(folder: Path) -> int:
    """Remove temporary files of ended processes from a folder, and return how many entries it had. Files that cannot be
    removed stay.
    """
    count = 0
    if os.name != "posix":  # on other systems, os.kill(pid, 0) ends the process
        return count
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            match = _TEMPORARY_NAME.fullmatch(entry.name) if entry.name.startswith(".") else None
            if match is None or _may_live(Path(entry), int(match[1]), match[2]):
                continue
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    os.unlink(entry)
    return count


def _may_live(path: Path, process: int, machine: str | None) -> bool:
    """Whether the process that writes a temporary file may still be running."""
    if machine != machine_id():
        with suppress(OSError):
            parts = [path, *path.iterdir()] if path.is_dir() and not path.is_symlink() else [path]
            return time.time() - max(part.lstat().st_mtime for part in parts) < _FOREIGN_AGE
        return True
    return is_running(process)


def is_running(process: int) -> bool:
    """Whether a process of this machine is running. Only for POSIX: on other systems, os.kill(pid, 0) ends it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def process_start(process: int) -> str | None:
    """When a process began; another process with the same id began at another time. None if it has ended."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # the name before it may contain anything
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat") or os.name != "posix" or not is_running(process):
            return None
    except (OSError, IndexError):
        return None
    command = ["ps", "-o", "stat=,lstart=", "-p", str(process)]  # macOS
    state, _, began = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else began.strip()


@cache
def machine_id() -> str:
    """The scope in which process ids are unique: this boot of this machine, and its container."""

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        scope = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        scope = platform.node()
    return blake2b(scope.encode(), digest_size=4).hexdigest()


@contextmanager
def atomic_write(path: Path, new: bool = False) -> Iterator[Path]:
    """Yield a draft path to write the file or folder `path` to; rename it to `path` on success.

    A failure (a full disk, no permission) removes the draft, leaves `path` unchanged and raises UserError. With `new`,
    so does anything that was written to `path` in the meantime.
    """
    draft = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(draft)
        yield draft
        for entry in draft.rglob("*") if draft.is_dir() else ():
            _sync(entry)
        _sync(draft)
        if new:
            with suppress(OSError):  # it may be an empty folder
                path.rmdir()
            if os.path.lexists(path):
                raise UserError(f"{path} was written by another program in the meantime; choose another path")
        elif path.is_dir():
            remove(path)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"{path} could not be written: {_reason(error, path)}") from error
    finally:
        with suppress(OSError):  # an unwritable folder has no draft to remove
            remove(draft)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Replace the text file at `path` atomically. Characters that are not valid Unicode (in file names) are written as
    JSON escapes. Only this user can read a `private` file.
    """
    with atomic_write(path) as draft:
        if private:
            draft.touch(0o600)
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: Any, private: bool = False) -> None:
    """Replace the JSON file at `path` atomically. Only this user can read a `private` file."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n", private)


_REMEDY = "restore it from a copy"


def read_json(path: Path, source: str | None = None, remedy: str = _REMEDY) -> Any:
    """Parse a JSON file; UserError, naming the source (none: the path), if it is missing or broken."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block
        raise UserError(f"{path} is not a regular file; restore it from a copy")
    with open_file(path) as file:
        return decode_json(file.read(), source or str(path), remedy)


def decode_json(text: bytes, source: str, remedy: str = _REMEDY) -> Any:
    """Parse JSON text in UTF-8; UserError, naming the source, for anything else."""
    try:
        return parse_json(text.decode("utf-8"))
    except DuplicateKeyError as error:
        raise UserError(f"{source} has {error}; keep one of them, or {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error}; {remedy}") from error


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists. A folder is renamed first, so that it is never left half complete; of a
    link only the link is removed.
    """
    if path.is_dir() and not path.is_symlink():
        trash = path if path.name.startswith(".") else temporary_path(path, "removed")
        if trash != path:
            os.replace(path, trash)
        shutil.rmtree(trash, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError, path: Path) -> str:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; let this user write there, or choose another folder"
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        free = f"{path.parent} is not accessible"
    return f"{error.strerror or error} ({free}); free space or choose another folder"


DIGESTS_FILE = "digests.json"
_VERSION, _MAX_FILES = 1, 50_000  # format version, and files per folder


def seal(draft: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write digests.json in a draft folder of `atomic_write`, which syncs it with the rest. `known` are entries that
    other processes have computed.
    """
    digests = compute_digests(draft, known=known)
    (draft / DIGESTS_FILE).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def digest_entry(path: Path) -> dict[str, Any]:
    """Return the entry of a file in digests.json."""
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def compute_digests(
    folder: Path, excluded: Collection[str] = (), known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of digests.json for a folder: all files except hidden ones and those in the subfolders
    `excluded`. Entries in `known` are not computed.
    """
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts[0] not in excluded and parts != (DIGESTS_FILE,):
            name = "/".join(parts)
            files[name] = (known or {}).get(name) or digest_entry(path)
    return {"version": _VERSION, "files": files}


def is_sealed(folder: Path) -> bool:
    """Whether the folder has digests of its files."""
    return (folder / DIGESTS_FILE).is_file()


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
    path = folder / DIGESTS_FILE
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


def _digest(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check the disk, or restore it from a copy"
        ) from error
