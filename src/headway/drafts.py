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
_FOREIGN = 86_400  # seconds without a change after which a file of another machine or of an earlier boot is removed
_LONG, _SHOWN = 200, 40  # maximum bytes of a name (systems allow 255 with our suffix); characters kept of a longer one
_LARGE = 1000  # entries from which on a folder is cleaned only once per process
_CLEANED: set[Path] = set()  # such folders


def draft_of(path: Path, purpose: str = "draft") -> Path:
    """The temporary path next to `path` under which this process writes it, or moves it with the purpose "removed"."""
    folder = path.parent
    if folder not in _CLEANED and clean(folder) > _LARGE:
        _CLEANED.add(folder)
    name = path.name
    if len(os.fsencode(name)) > _LONG:
        name = f"{name[:_SHOWN]}-{blake2b(os.fsencode(name), digest_size=8).hexdigest()}"
    return path.with_name(f".{name}.{os.getpid()}-{_machine()}.{purpose}")


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
            found = _NAME.fullmatch(entry.name) if entry.name.startswith(".") else None
            if found is None or _may_live(Path(entry), int(found[1]), found[2]):
                continue
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    os.unlink(entry)
    return count


def _may_live(draft: Path, process: int, machine: str | None) -> bool:
    """Whether the process that writes a temporary file may still be running."""
    if machine != _machine():
        with suppress(OSError):
            parts = [draft, *draft.iterdir()] if draft.is_dir() and not draft.is_symlink() else [draft]
            return time.time() - max(part.lstat().st_mtime for part in parts) < _FOREIGN
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


@cache
def _machine() -> str:
    """The scope in which process ids are unique: this boot of this machine, and its container."""

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        where = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        where = platform.node()
    return blake2b(where.encode(), digest_size=4).hexdigest()
