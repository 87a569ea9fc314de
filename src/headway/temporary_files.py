"""Temporary names of files and folders while they are written; a rename then gives them their final names.

A killed process leaves its temporary files behind. The next process that writes in the same folder removes them, but
keeps those of running processes.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

_NAME = re.compile(r"\..+\.(\d{1,9})(?:-([0-9a-f]{8}))?\.(?:draft|removed)(?:\.\w+)*", re.DOTALL)
_FOREIGN_AGE = 86_400  # seconds without a change after which a file from another machine or boot is removed
_MAX_NAME_BYTES, _KEPT_CHARACTERS = (
    200,
    40,
)  # maximum bytes of a name (systems allow 255 with our suffix); characters kept of a longer one
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
    return path.with_name(f".{name}.{os.getpid()}-{_machine_id()}.{purpose}")


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
            match = _NAME.fullmatch(entry.name) if entry.name.startswith(".") else None
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
    if machine != _machine_id():
        with suppress(OSError):
            parts = [path, *path.iterdir()] if path.is_dir() and not path.is_symlink() else [path]
            return time.time() - max(part.lstat().st_mtime for part in parts) < _FOREIGN_AGE
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


@cache
def _machine_id() -> str:
    """The scope in which process ids are unique: this boot of this machine, and its container."""

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        scope = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        scope = platform.node()
    return blake2b(scope.encode(), digest_size=4).hexdigest()
