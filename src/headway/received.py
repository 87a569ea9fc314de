"""Files that others sent: plain files alone, opened without waiting, expanded within limits that a user can raise."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, Protocol

from headway.errors import UserError

DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError)
_BLOCK = 1 << 20
_FREE = 1 << 26  # bytes that any file may expand to, however small it is
_FREE_LINES = 1 << 24  # of these, bytes that are read line by line: each line takes its time, be it empty
_SIP = 1 << 17
_FRAMES, _FRAME = 100_000, 64  # compressed frames that any file may have, and bytes for each further one
_PIECE = 1 << 12  # compressed bytes, where what they expand to cannot be asked for in parts
_DICTIONARY = 1 << 28  # bytes that a decompressor may look back
_LONGEST = 80  # characters of a path that a message shows
HUB, _CONFIRMS = "hf:", "HEADWAY_HUB"  # by which a name of a hub is told from a path, and confirmed without it


class ReadLimits(NamedTuple):
    """How much one file may take. HEADWAY_LIMIT_ and the name, in the environment, sets another one."""

    expanded: int = 1 << 40  # bytes of a compressed file; those of the first 64 MiB, of lines 16, are free
    ratio: int = 250  # bytes out for each byte in, above that
    whole: int = 1 << 33  # bytes of what must be in memory at once: an array, a member of an archive
    members: int = 100_000  # files in an archive
    line: int = 1 << 26  # characters of a line


def limits() -> ReadLimits:
    """Those of the environment. UserError for a setting that is no whole number above 0."""
    found = ReadLimits()
    for name in ReadLimits._fields:
        said = os.environ.get(_setting(name))
        if said is None:
            continue
        if not said.isdecimal() or len(said) > 18 or int(said) == 0:
            raise UserError(f"{_setting(name)} is {said!r}; give a whole number from 1 on, or unset it")
        found = found._replace(**{name: int(said)})
    return found


def exceeded(what: str, found: str, name: str) -> UserError:
    """The error for what is more than the limit `name` lets through."""
    most = f"{_setting(name)}={getattr(limits(), name)}"
    return UserError(f"{what} {found}, more than {most} lets through; set it higher if you trust the file")


def _setting(name: str) -> str:
    return f"HEADWAY_LIMIT_{name.upper()}"


def check_expansion(what: str, packed: int, size: int, free: int = _FREE) -> None:
    """UserError where `size` bytes are too many to come out of `packed`, or too many at all."""
    if size <= free:
        return
    if size > (most := limits()).expanded:
        raise exceeded(what, f"expands to over {most.expanded:,} bytes", "expanded")
    if size > most.ratio * packed:
        raise exceeded(what, f"expands to {size:,} bytes or more from {packed:,}", "ratio")


def check_whole(what: str, packed: int, size: int) -> None:
    """As `check_expansion`, for bytes that must be in memory at once."""
    if size > limits().whole:
        raise exceeded(what, f"takes {size:,} bytes of memory", "whole")
    check_expansion(what, packed, size)


def place_of(given: str | Path) -> Path:
    """The path that is meant, with a home in the place of ~, be there a file, a folder or nothing. UserError for one
    that cannot be or cannot be reached, and at once for pipes and devices.
    """
    try:
        path = Path(given).expanduser()
        mode = path.stat().st_mode
    except RuntimeError as error:  # of pathlib, where there is no such user
        raise UserError(f"{shown(given)} begins with a user who is not known here; write the path out") from error
    except ValueError as error:
        raise UserError(f"{shown(given)!r} cannot be the name of a file ({error}); check it") from error
    except (FileNotFoundError, NotADirectoryError):
        return Path(given).expanduser()
    except OSError as error:
        raise UserError(f"{shown(given)} cannot be reached ({error.strerror}); check the path") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UserError(f"{shown(given)} is not a plain file, but a pipe or a device; give a file or a folder")
    return path


def shown(given: str | Path) -> str:
    """A path for a message: of a very long one the start."""
    text = str(given)
    return text if len(text) <= _LONGEST * 4 else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def hub_confirmed() -> bool:
    """Whether the setting HEADWAY_HUB=1 allows names of a hub without their prefix."""
    return os.environ.get(_CONFIRMS) == "1"


def unconfirmed(name: str | Path, what: str) -> UserError:
    """The error for a name that is no path here, and would be that of a `what` on a hub."""
    return UserError(
        f"there is no file or folder {name}; check the path, or write {HUB}{name} for the {what} of that name on the "
        f"Hugging Face hub ({_CONFIRMS}=1 allows it without {HUB})"
    )


def opened(path: Path | str) -> BufferedReader:
    """A plain file for reading. UserError at once for anything else: a named pipe or a device would keep us waiting."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(path)} cannot be read: {reason}; check the path") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{shown(path)} is not a plain file; give a file")
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)
        if (states := _RECORDED.get()) is not None:
            states.setdefault(os.path.abspath(path), _state(os.fstat(handle)))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


class FileState(NamedTuple):
    """What changes where a file is replaced, cut or written to."""

    device: int
    inode: int
    size: int
    changed: int  # ns since 1970


FileStates = dict[str, FileState | None]  # by absolute path; None for a file that is not there
_RECORDED: ContextVar[FileStates | None] = ContextVar("recorded", default=None)


@contextmanager
def recorded() -> Iterator[FileStates]:
    """The files that are opened within, in the state in which each was opened first."""
    states: FileStates = {}
    token = _RECORDED.set(states)
    try:
        yield states
    finally:
        _RECORDED.reset(token)


def states_now(paths: Iterable[str]) -> FileStates:
    """These files as they are now."""
    found: FileStates = {}
    for path in paths:
        try:
            found[path] = _state(os.stat(path))
        except OSError:
            found[path] = None
    return found


def _state(found: os.stat_result) -> FileState:
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def size_of(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def expanded(raw: IO[bytes], suffix: str, packed: int, what: str) -> Iterator[bytes]:
    """The bytes of a stream of `packed` bytes, compressed as its suffix says, in blocks of about a mebibyte. UserError
    where they are more than the limits let through; one of DAMAGE for a stream that is damaged.
    """
    size = 0
    for block in decompressed(raw, suffix, what):
        size += len(block)
        check_expansion(what, packed, size, _FREE_LINES)
        yield block


def decompressed(raw: IO[bytes], suffix: str, what: str) -> Iterator[bytes]:
    """The bytes of a stream, compressed as its suffix says, in blocks of at most about a mebibyte. UserError for frames
    without number; one of DAMAGE for a stream that is damaged.
    """
    return _READERS.get(suffix, _plain)(raw, what)


def _plain(raw: IO[bytes], what: str) -> Iterator[bytes]:
    while block := raw.read(_BLOCK):
        yield block


class _Frame(Protocol):
    """A decompressor of one frame: a member of .gz, a stream of .bz2 or .xz."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Member:
    """zlib's decompressor as those of bz2 and lzma are."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max(0, max_length))


def _gz(raw: IO[bytes], what: str) -> Iterator[bytes]:
    return _frames(raw, what, _Member, b"")  # what follows and is not a member is damage, as gzip has it


def _bz2(raw: IO[bytes], what: str) -> Iterator[bytes]:
    return _frames(raw, what, bz2.BZ2Decompressor, b"BZh")


def _xz(raw: IO[bytes], what: str) -> Iterator[bytes]:
    return _frames(raw, what, lambda: lzma.LZMADecompressor(memlimit=_DICTIONARY), b"\xfd7zXZ\0")


def _frames(raw: IO[bytes], what: str, begin: Callable[[], _Frame], magic: bytes) -> Iterator[bytes]:
    """A decompressor for each frame: a file may have several. What follows the last one and does not start with `magic`
    is passed over, as the tools of these formats do; zeros pad.
    """
    held, count, size = raw.read(_SIP), 0, 0
    while held:
        count += 1
        _check_frames(what, count, size)
        frame = begin()
        while not frame.eof:
            if frame.needs_input and not held and not (held := raw.read(_SIP)):
                raise EOFError("it ends before its last stream does")
            try:
                block = frame.decompress(held if frame.needs_input else b"", _BLOCK)
            except OSError as error:  # of bz2
                raise zlib.error(str(error)) from error
            if block:
                size += len(block)
                yield block
            held = b""
        held = frame.unused_data.lstrip(b"\0")
        while not held and (more := raw.read(_SIP)):
            held = more.lstrip(b"\0")
        if not magic.startswith(held[: len(magic)]):
            return


def _zst(raw: IO[bytes], what: str) -> Iterator[bytes]:
    """A decompressor for each frame, because only its `eof` tells a whole file from one that was cut off."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{what} needs the package zstandard; pip install 'headway[data]'") from error
    frame, count, size = zstandard.ZstdDecompressor().decompressobj(), 1, 0
    try:
        while block := raw.read(_PIECE):
            while block:
                if frame.eof:
                    count += 1
                    _check_frames(what, count, size)
                    frame = zstandard.ZstdDecompressor().decompressobj()
                if text := frame.decompress(block):
                    size += len(text)
                    yield text
                block = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise UserError(f"{what} is damaged ({error}); fetch or compress it again") from error
    if not frame.eof:
        raise EOFError("it ends before its last frame does")


def _check_frames(what: str, count: int, size: int) -> None:
    """UserError for frames that hold hardly anything: each takes its time, be it empty."""
    if count > _FRAMES + size // _FRAME:
        raise UserError(f"{what} has {count:,} compressed frames in its first {size:,} bytes; compress it again as one")


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[bytes]]] = {".gz": _gz, ".bz2": _bz2, ".xz": _xz, ".zst": _zst}
