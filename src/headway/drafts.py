"""Drafts: what files and folders are called while they are written, until they get their own names in one step.

A process that is killed leaves its drafts behind. The next one that writes in the same folder removes them, and never
those of a process that lives.
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
_FOREIGN = 86_400  # seconds without a change, after which a draft of another machine or of an earlier boot is removed
_LONG, _SHOWN = 200, 40  # bytes of a name that leave room for more, of the 255 of a system; characters of a longer one
_LARGE = 1000  # entries of a folder, which is looked through once in a process
_CLEANED: set[Path] = set()  # such folders


def draft_of(path: Path, purpose: str = "draft") -> Path:
    """The name next to `path` under which this process writes it, or, where that is the purpose, has it "removed"."""
    folder = path.parent
    if folder not in _CLEANED and clean(folder) > _LARGE:
        _CLEANED.add(folder)
    name = path.name
    if len(os.fsencode(name)) > _LONG:
        name = f"{name[:_SHOWN]}-{blake2b(os.fsencode(name), digest_size=8).hexdigest()}"
    return path.with_name(f".{name}.{os.getpid()}-{_machine()}.{purpose}")


def clean(folder: Path) -> int:
    """Remove the drafts in a folder whose processes have ended, and return how many entries it had. What cannot be
    removed stays.
    """
    count = 0
    if os.name != "posix":  # elsewhere, to ask for a process ends it
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
    """Whether the process that writes a draft may still be at it."""
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
    """What the numbers of processes are unique in: this boot of this machine, and a container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        where = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        where = platform.node()
    return blake2b(where.encode(), digest_size=4).hexdigest()
