"""Files from untrusted sources: only regular files, opened without blocking, decompressed within limits that the
user can raise.
"""

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
_FREE_LINES = 1 << 24  # the same for files that are read line by line, which takes longer per byte
_SIP = 1 << 17
_FRAMES, _FRAME = 100_000, 64  # compressed frames that any file may have, and output bytes per further frame
_PIECE = 1 << 12  # compressed bytes per read for decompressors that cannot limit their output
_DICTIONARY = 1 << 28  # maximum bytes of a decompressor's dictionary
_LONGEST = 80  # maximum characters of a path in a message
HUB, _CONFIRMS = "hf:", "HEADWAY_HUB"  # prefix of hub names; the variable that allows names without it


class ReadLimits(NamedTuple):
    """Limits for one file. The environment variable HEADWAY_LIMIT_NAME overrides the limit NAME."""

    expanded: int = 1 << 40  # bytes after decompression; the first 64 MiB (16 MiB of lines) are always allowed
    ratio: int = 250  # output bytes per input byte beyond that
    whole: int = 1 << 33  # bytes that must be in memory at once: an array, a member of an archive
    members: int = 100_000  # files in an archive
    line: int = 1 << 26  # characters of a line


def limits() -> ReadLimits:
    """The limits, with overrides from the environment. UserError for a value that is not a positive integer."""
    found = ReadLimits()
    for name in ReadLimits._fields:
        said = os.environ.get(_setting(name))
        if said is None:
            continue
        if not said.isdecimal() or len(said) > 18 or int(said) == 0:
            raise UserError(f"{_setting(name)} is {said!r}; use an integer of 1 or more, or unset it")
        found = found._replace(**{name: int(said)})
    return found


def exceeded(what: str, found: str, name: str) -> UserError:
    """The error for data that exceed the limit `name`."""
    most = f"{_setting(name)}={getattr(limits(), name)}"
    return UserError(f"{what} {found}, more than {most} allows; raise it if you trust the file")


def _setting(name: str) -> str:
    return f"HEADWAY_LIMIT_{name.upper()}"


def check_expansion(what: str, packed: int, size: int, free: int = _FREE) -> None:
    """UserError if `packed` compressed bytes expand to `size` bytes and that exceeds a limit."""
    if size <= free:
        return
    if size > (most := limits()).expanded:
        raise exceeded(what, f"expands to over {most.expanded:,} bytes", "expanded")
    if size > most.ratio * packed:
        raise exceeded(what, f"expands to {size:,} bytes or more from {packed:,}", "ratio")


def check_whole(what: str, packed: int, size: int) -> None:
    """Like `check_expansion`, for bytes that must be in memory at once."""
    if size > limits().whole:
        raise exceeded(what, f"takes {size:,} bytes of memory", "whole")
    check_expansion(what, packed, size)


def place_of(given: str | Path) -> Path:
    """The path with ~ expanded, whether it exists or not. UserError for an invalid or unreachable path, and immediately
    for pipes and devices.
    """
    try:
        path = Path(given).expanduser()
        mode = path.stat().st_mode
    except RuntimeError as error:  # from pathlib if there is no such user
        raise UserError(f"{shown(given)} begins with an unknown user name; write the path in full") from error
    except ValueError as error:
        raise UserError(f"{shown(given)!r} is not a valid file name ({error}); correct it") from error
    except (FileNotFoundError, NotADirectoryError):
        return Path(given).expanduser()
    except OSError as error:
        raise UserError(f"{shown(given)} cannot be reached ({error.strerror}); check the path") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UserError(f"{shown(given)} is a pipe or a device, not a regular file; use a file or a folder")
    return path


def shown(given: str | Path) -> str:
    """A path for a message: only the start of a very long one."""
    text = str(given)
    return text if len(text) <= _LONGEST * 4 else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def hub_confirmed() -> bool:
    """Whether HEADWAY_HUB=1 allows hub names without their prefix."""
    return os.environ.get(_CONFIRMS) == "1"


def unconfirmed(name: str | Path, what: str) -> UserError:
    """The error for a name that is not a local path but may name a `noun` on the hub."""
    return UserError(
        f"there is no file or folder {name}; check the path, or write {HUB}{name} for the {what} of that name on the "
        f"Hugging Face hub ({_CONFIRMS}=1 allows it without {HUB})"
    )


def opened(path: Path | str) -> BufferedReader:
    """Open a regular file for reading. UserError for anything else, without blocking on a named pipe or a device."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(path)} cannot be read: {reason}; check the path") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{shown(path)} is not a regular file; use a file")
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)
        if (states := _RECORDED.get()) is not None:
            states.setdefault(os.path.abspath(path), _state(os.fstat(handle)))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


class FileState(NamedTuple):
    """Metadata that change if a file is replaced, truncated or written to."""

    device: int
    inode: int
    size: int
    changed: int  # ns since 1970


FileStates = dict[str, FileState | None]  # by absolute path; None for a missing file
_RECORDED: ContextVar[FileStates | None] = ContextVar("recorded", default=None)


@contextmanager
def recorded() -> Iterator[FileStates]:
    """Record the files that are opened inside the context, each in the state of its first opening."""
    states: FileStates = {}
    token = _RECORDED.set(states)
    try:
        yield states
    finally:
        _RECORDED.reset(token)


def states_now(paths: Iterable[str]) -> FileStates:
    """The current states of these files."""
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
    """Decompress a stream of `packed` bytes by its suffix, in blocks of about 1 MiB. UserError beyond the limits; one
    of DAMAGE for a damaged stream.
    """
    size = 0
    for block in decompressed(raw, suffix, what):
        size += len(block)
        check_expansion(what, packed, size, _FREE_LINES)
        yield block


def decompressed(raw: IO[bytes], suffix: str, what: str) -> Iterator[bytes]:
    """Decompress a stream by its suffix, in blocks of at most about 1 MiB. UserError for too many frames; one of DAMAGE
    for a damaged stream.
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
    """zlib's decompressor with the interface of those of bz2 and lzma."""

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
    return _frames(raw, what, _Member, b"")  # trailing data that are not a member are damage, as in gzip


def _bz2(raw: IO[bytes], what: str) -> Iterator[bytes]:
    return _frames(raw, what, bz2.BZ2Decompressor, b"BZh")


def _xz(raw: IO[bytes], what: str) -> Iterator[bytes]:
    return _frames(raw, what, lambda: lzma.LZMADecompressor(memlimit=_DICTIONARY), b"\xfd7zXZ\0")


def _frames(raw: IO[bytes], what: str, begin: Callable[[], _Frame], magic: bytes) -> Iterator[bytes]:
    """Decompress each frame of a file, which may have several. Trailing data that do not start with `magic` are
    ignored, as the tools of these formats do; zeros are padding.
    """
    held, count, size = raw.read(_SIP), 0, 0
    while held:
        count += 1
        _check_frames(what, count, size)
        frame = begin()
        while not frame.eof:
            if frame.needs_input and not held and not (held := raw.read(_SIP)):
                raise EOFError("it ends in the middle of a stream")
            try:
                block = frame.decompress(held if frame.needs_input else b"", _BLOCK)
            except OSError as error:  # from bz2
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
    """Decompress frame by frame, because only `eof` distinguishes a complete file from a truncated one."""
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
        raise UserError(f"{what} is damaged ({error}); download or compress it again") from error
    if not frame.eof:
        raise EOFError("it ends in the middle of a frame")


def _check_frames(what: str, count: int, size: int) -> None:
    """UserError for too many tiny frames: each takes time even if it is empty."""
    if count > _FRAMES + size // _FRAME:
        raise UserError(f"{what} has {count:,} compressed frames in its first {size:,} bytes; compress it again as one")


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[bytes]]] = {".gz": _gz, ".bz2": _bz2, ".xz": _xz, ".zst": _zst}
