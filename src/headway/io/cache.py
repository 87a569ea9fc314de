"""The folder for files that headway can recreate."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headway.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_root() -> Path:
    """The folder for files that headway can recreate: HEADWAY_CACHE, or ~/.cache/headway."""
    setting = os.environ.get("HEADWAY_CACHE")
    try:
        return Path(setting).expanduser() if setting else Path.home() / ".cache" / "headway"
    except RuntimeError as error:  # an unknown user, or no home folder
        raise UserError(f"there is no cache folder ({error}); set HEADWAY_CACHE to a folder") from None


def data_folders() -> list[Path]:
    """The folders in which known sets are searched, in order: HEADWAY_DATA, then headway's downloads."""
    setting = os.environ.get("HEADWAY_DATA")
    return [*([Path(setting).expanduser()] if setting else []), cache_root() / "data"]


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Create a folder; a full disk or a read-only folder while writing in it is a UserError."""
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # as in /proc
            raise UserError(
                f"{folder} cannot be created ({error.strerror}); set HEADWAY_CACHE to another folder"
            ) from error
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise UserError(
                f"the disk is full at {folder}; free some space, or set HEADWAY_CACHE to a folder on another disk"
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise UserError(
                f"{folder} is not writable ({error.strerror}); set HEADWAY_CACHE to a writable folder"
            ) from error
        raise


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock that the system releases when the process dies; no lock on systems without flock. BlockingIOError if
    another process holds it, unless this one may wait.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield
