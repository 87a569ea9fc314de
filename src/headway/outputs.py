"""Checks of output folders and files: regular files only, never links to other locations."""

from __future__ import annotations

import errno
import os
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
    waiting = [(folder, 1)]
    while waiting:
        place, depth = waiting.pop()
        try:
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries]
            for name in names:
                with suppress(FileNotFoundError):  # removed in the meantime
                    found = os.lstat(place / name)
                    check_kind(place / name, found)
                    if stat.S_ISDIR(found.st_mode) and not (name in _FOREIGN and depth <= _FOREIGN_DEPTH):
                        waiting.append((place / name, depth + 1))
        except (FileNotFoundError, NotADirectoryError):  # the run does not exist yet
            continue
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read ({error.strerror}); correct its permissions"
            ) from error


def check_folder(path: Path) -> None:
    """Raise UserError if an output folder is a link or a file; a missing folder is fine."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    check_kind(path, found)
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is not a folder; remove it, or choose another folder for the run")


def check_kind(path: Path, found: os.stat_result) -> None:
    """Raise UserError for anything other than a regular file or folder."""
    if stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == _JUNCTION:
        target = _target(path)
        raise UserError(f"{path} is a link to {target}, which must not be written to; replace the link with a copy")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UserError(f"{path} is a pipe, a socket or a device; remove it")


def open_own(path: Path, *, update: bool = False) -> IO[str]:
    """Open a text file that belongs to a run, to append to it or, with `update`, to read and replace it.

    Creates it if missing. Raises UserError for a link, a pipe, a device, a folder or a hard-linked file, without
    changing it or blocking on it.
    """
    try:
        with suppress(FileNotFoundError):
            _check_own(path, os.lstat(path))
        way = os.O_RDWR if update else os.O_WRONLY | os.O_APPEND
        handle = os.open(path, way | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | _NO_FOLLOW | _NO_WAIT, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:  # it became a link after the check
            raise UserError(f"{path} is a link; remove it") from error
        raise
    try:
        found = os.fstat(handle)
        _check_own(path, found)
        if not _NO_FOLLOW:
            check_kind(path, os.lstat(path))
        return os.fdopen(handle, "r+" if update else "a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except BaseException:
        os.close(handle)
        raise


def visible_names(folder: Path, shown: int = 3) -> str:
    """Names in a folder for a message, without hidden files; "" for an empty or missing folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        raise UserError(f"{folder} is not a folder; choose another path") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); correct its permissions") from error
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def check_output(path: Path, inputs: Iterable[Path | str]) -> None:
    """Raise UserError if an output file would replace one of the command's inputs or a file in an input folder,
    however the paths are spelled.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode):  # a pipe or device that the user named, or a folder for new files
        return
    place = Path(os.path.realpath(path))
    for given in inputs:
        try:
            read = os.stat(Path(given).expanduser())
            inside = stat.S_ISDIR(read.st_mode) and place.is_relative_to(os.path.realpath(Path(given).expanduser()))
        except (OSError, ValueError, RuntimeError):  # a data set's name, or text
            continue
        if inside or os.path.samestat(found, read):
            raise UserError(f"{path} would overwrite the input {given}; choose another output file")


def check_new(*paths: Path) -> None:
    """Raise UserError for an output file that already exists."""
    taken = next((path for path in paths if os.path.lexists(path)), None)
    if taken is not None:
        raise UserError(f"{taken} already exists; remove it, or choose another path with --out")


def _check_own(path: Path, found: os.stat_result) -> None:
    check_kind(path, found)
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder; remove it")
    if found.st_nlink > 1:
        raise UserError(f"{path} is the same file as another one (a hard link); remove it")


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "another location"
