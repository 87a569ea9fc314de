"""Folders and files that a command writes to: real ones, never links that lead elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from headway.errors import UserError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither flag: there the checks before and after must do
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_JUNCTION = 0xA0000003  # the tag of Windows for a folder that leads elsewhere and is no symbolic link
_FOREIGN = ("wandb",)  # folders in which another library puts links of its own, and how deep they are: of a run, and
_FOREIGN_DEPTH = 2  # of the runs of a comparison


def check_tree(folder: Path) -> None:
    """UserError for a link, a pipe or a device in a folder, however deep: what is written there would go elsewhere.

    The folder itself may be reached by a link, because the user named it.
    """
    waiting = [(folder, 1)]
    while waiting:
        place, depth = waiting.pop()
        try:
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries]
            for name in names:
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    found = os.lstat(place / name)
                    check_kind(place / name, found)
                    if stat.S_ISDIR(found.st_mode) and not (name in _FOREIGN and depth <= _FOREIGN_DEPTH):
                        waiting.append((place / name, depth + 1))
        except (FileNotFoundError, NotADirectoryError):  # of a run that is still to be made
            continue
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read ({error.strerror}); correct its permissions"
            ) from error


def check_folder(path: Path) -> None:
    """UserError for a link or a file where a folder is to be written to; nothing at all is fine."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    check_kind(path, found)
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is not a folder; remove it, or choose another folder for the run")


def check_kind(path: Path, found: os.stat_result) -> None:
    """UserError for what is neither a plain file nor a folder."""
    if stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == _JUNCTION:
        target = _target(path)
        raise UserError(f"{path} is a link to {target}, which must not be written to; put a copy in place of the link")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UserError(f"{path} is a pipe, a socket or a device; remove it")


def open_own(path: Path, *, update: bool = False) -> IO[str]:
    """Open a text file that belongs to a run, to append to it or, with `update`, to read and replace it.

    It is made if it is missing. UserError for a link, a pipe, a device, a folder, and for a file that has a second name
    (a hard link) elsewhere; none of these is changed or waited for.
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
    """The names of what a folder holds, for a message, without hidden files; "" for an empty or missing one."""
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
    """UserError for an output file that would replace one of the command's inputs, or a file in an input folder,
    however the two are spelled.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device that the user named, or a folder for new files
        return
    place = Path(os.path.realpath(path))
    for given in inputs:
        try:
            read = os.stat(Path(given).expanduser())
            inside = stat.S_ISDIR(read.st_mode) and place.is_relative_to(os.path.realpath(Path(given).expanduser()))
        except (OSError, ValueError, RuntimeError):  # the name of a data set, or a text
            continue
        if inside or os.path.samestat(found, read):
            raise UserError(f"{path} would be overwritten, and {given} is read from; choose another file to write")


def check_new(*paths: Path) -> None:
    """UserError for a file that is there already and that the user may not expect to be replaced."""
    taken = next((path for path in paths if os.path.lexists(path)), None)
    if taken is not None:
        raise UserError(f"{taken} already exists; remove it, or choose another place with --out")


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
        return "another place"
