"""Checks of output folders and files: regular files only, never links to other locations."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from headway.errors import UserError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither flag and relies on the checks before and after
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_JUNCTION = 0xA0000003  # tag of Windows junctions: folder links that are not symbolic links
_FOREIGN = ("wandb",)  # folders in which another library creates links
_FOREIGN_DEPTH = 2  # maximum depth of these folders: in a run, or in the runs of a comparison


def check_tree(folder: Path) -> None:
    """Raise UserError for a link, a pipe or a device anywhere in a folder: output would be written elsewhere.

    The folder itself may be a link, because the user named it.
    """
    pending = [(folder, 1)]
    while pending:
        path, depth = pending.pop()
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries]
            for name in names:
                with suppress(FileNotFoundError):  # removed in the meantime
                    status = os.lstat(path / name)
                    check_kind(path / name, status)
                    if stat.S_ISDIR(status.st_mode) and not (name in _FOREIGN and depth <= _FOREIGN_DEPTH):
                        pending.append((path / name, depth + 1))
        except (FileNotFoundError, NotADirectoryError):  # the run does not exist yet
            continue
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read ({error.strerror}); correct its permissions"
            ) from error


def check_folder(path: Path) -> None:
    """Raise UserError if an output folder is a link or a file; a missing folder is fine."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    check_kind(path, status)
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is not a folder; choose another one")


def check_kind(path: Path, status: os.stat_result) -> None:
    """Raise UserError for anything other than a regular file or folder."""
    if stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) == _JUNCTION:
        try:
            target = os.readlink(path)
        except OSError:
            target = "another location"
        raise UserError(f"{path} is a link to {target}, which must not be written to; replace the link with a copy")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise UserError(f"{path} is a pipe, a socket or a device; remove it")


def open_run_file(path: Path, *, update: bool = False, flags: int = os.O_CREAT) -> IO[str]:
    """Open a text file that belongs to a run, to append to it or, with `update`, to read and replace it.

    Creates it if missing, unless other `flags` of os.open are passed. Raises UserError for a link, a pipe, a device, a
    folder or a hard-linked file, without changing it or blocking on it.
    """
    try:
        with suppress(FileNotFoundError):
            _check_run_file(path, os.lstat(path))
        flags |= os.O_RDWR if update else os.O_WRONLY | os.O_APPEND
        handle = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | _NO_FOLLOW | _NO_WAIT, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:  # it became a link after the check
            raise UserError(f"{path} is a link; remove it") from error
        raise
    try:
        status = os.fstat(handle)
        _check_run_file(path, status)
        if not _NO_FOLLOW:
            check_kind(path, os.lstat(path))
        return os.fdopen(handle, "r+" if update else "a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except BaseException:
        os.close(handle)
        raise


def visible_names(folder: Path, limit: int = 3) -> str:
    """Names in a folder for a message, without hidden files; "" for an empty or missing folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        raise UserError(f"{folder} is not a folder; choose another path") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); correct its permissions") from error
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def check_output(path: Path, inputs: Iterable[Path | str]) -> None:
    """Raise UserError if an output file would replace one of the command's inputs or a file in an input folder,
    however the paths are written.
    """
    try:
        status = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):  # a pipe or device that the user named, or a folder for new files
        return
    resolved = Path(os.path.realpath(path))
    for source in inputs:
        try:
            source_status = os.stat(Path(source).expanduser())
            inside = stat.S_ISDIR(source_status.st_mode) and resolved.is_relative_to(
                os.path.realpath(Path(source).expanduser())
            )
        except (OSError, ValueError, RuntimeError):  # a data set's name, or text
            continue
        if inside or os.path.samestat(status, source_status):
            raise UserError(f"{path} would overwrite the input {source}; choose another output file")


def check_free_disk(folder: Path, size: int) -> None:
    """Raise UserError if the disk of `folder`, which may not exist yet, has fewer than `size` bytes free."""
    folder = folder.absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < size:
        raise UserError(
            f"the weights need {size:,} bytes, but the disk of {folder} has {free:,} bytes free; free space or choose "
            "another folder"
        )


def check_new(*paths: Path) -> None:
    """Raise UserError for an output file that already exists."""
    existing = next((path for path in paths if os.path.lexists(path)), None)
    if existing is not None:
        raise UserError(f"{existing} already exists; remove it, or choose another path with --out")


def _check_run_file(path: Path, status: os.stat_result) -> None:
    check_kind(path, status)
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder; remove it")
    if status.st_nlink > 1:
        raise UserError(f"{path} is a hard link to another file; remove it")
