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
_ALWAYS_ALLOWED = 1 << 26  # bytes that any file may expand to, however small it is
_ALWAYS_ALLOWED_LINES = 1 << 24  # the same for files that are read line by line, which takes longer per byte
_READ_SIZE = 1 << 17
_FREE_FRAMES, _BYTES_PER_FRAME = 100_000, 64  # compressed frames that any file may have, output bytes per further one
_SMALL_READ = 1 << 12  # compressed bytes per read for decompressors that cannot limit their output
_MAX_DICTIONARY = 1 << 28  # maximum bytes of a decompressor's dictionary
_MAX_PATH_LENGTH = 80  # maximum characters of a path in a message


class ReadLimits(NamedTuple):
    """Limits for one file; the variables of `_LIMIT_VARIABLES` override them."""

    expanded: int = 1 << 40  # bytes after decompression; the first 64 MiB (16 MiB of lines) are always allowed
    ratio: int = 250  # output bytes per input byte beyond that
    whole: int = 1 << 33  # bytes that must be in memory at once: an array, a member of an archive
    members: int = 100_000  # files in an archive
    line: int = 1 << 26  # characters of a line


_LIMIT_VARIABLES = {  # of the environment
    "expanded": "HEADWAY_LIMIT_EXPANDED",
    "ratio": "HEADWAY_LIMIT_RATIO",
    "whole": "HEADWAY_LIMIT_WHOLE",
    "members": "HEADWAY_LIMIT_MEMBERS",
    "line": "HEADWAY_LIMIT_LINE",
}


def read_limits() -> ReadLimits:
    """The limits, with overrides from the environment. UserError for a value that is not a positive integer."""
    limits = ReadLimits()
    for name, variable in _LIMIT_VARIABLES.items():
        setting = os.environ.get(variable)
        if setting is None:
            continue
        if not setting.isdecimal() or len(setting) > 18 or int(setting) == 0:
            raise UserError(f"{variable} is {setting!r}; use an integer of 1 or more, or unset it")
        limits = limits._replace(**{name: int(setting)})
    return limits


def limit_error(source: str, finding: str, name: str) -> UserError:
    """The error for data that exceed the limit `name`."""
    limit = f"{_LIMIT_VARIABLES[name]}={getattr(read_limits(), name)}"
    return UserError(f"{source} {finding}, more than {limit} allows; raise it if you trust the file")


def check_expansion(source: str, packed: int, size: int, allowed: int = _ALWAYS_ALLOWED) -> None:
    """UserError if `packed` compressed bytes expand to `size` bytes and that exceeds a limit."""
    if size <= allowed:
        return
    if size > (limits := read_limits()).expanded:
        raise limit_error(source, f"expands to over {limits.expanded:,} bytes", "expanded")
    if size > limits.ratio * packed:
        raise limit_error(source, f"expands to {size:,} bytes or more from {packed:,}", "ratio")


def check_in_memory(source: str, packed: int, size: int) -> None:
    """Like `check_expansion`, for bytes that must be in memory at once."""
    if size > read_limits().whole:
        raise limit_error(source, f"takes {size:,} bytes of memory", "whole")
    check_expansion(source, packed, size)


def user_path(name: str | Path) -> Path:
    """The path with ~ expanded, whether it exists or not. UserError for an invalid or unreachable path, and immediately
    for pipes and devices.
    """
    try:
        path = Path(name).expanduser()
        mode = path.stat().st_mode
    except RuntimeError as error:  # from pathlib if there is no such user
        raise UserError(f"{format_path(name)} begins with an unknown user name; write the path in full") from error
    except ValueError as error:
        raise UserError(f"{format_path(name)!r} is not a valid file name ({error}); correct it") from error
    except (FileNotFoundError, NotADirectoryError):
        return Path(name).expanduser()
    except OSError as error:
        raise UserError(f"{format_path(name)} cannot be reached ({error.strerror}); check the path") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UserError(f"{format_path(name)} is a pipe or a device, not a regular file; use a file or a folder")
    return path


# A folder that files named in tables may not leave. A server sets it for trainings on the files of its clients.
DATA_ROOT_VARIABLE = "HEADWAY_DATA_ROOT"


def file_of_row(table: Path, name: str, location: str) -> Path:
    """The file that the row at `location` of a table names, relative to the table's folder. UserError for a name that
    is invalid or, after links, outside the folder HEADWAY_DATA_ROOT, if this is set.
    """
    try:
        path, root = table.parent / Path(name).expanduser(), os.environ.get(DATA_ROOT_VARIABLE)
        is_allowed = not root or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, RuntimeError, ValueError):  # an unknown user, or a character that a name cannot contain
        raise UserError(f"{location}: {format_path(name)!r} is not the name of a file; correct the line") from None
    if not is_allowed:
        raise UserError(f"{location}: the file {format_path(name)!r} is outside {root}; use a path inside it")
    return path


def format_path(path: str | Path) -> str:
    """A path for a message: only the start of a very long one."""
    text = str(path)
    return text if len(text) <= _MAX_PATH_LENGTH * 4 else f"{text[:_MAX_PATH_LENGTH]}... ({len(text):,} characters)"


def open_file(path: Path | str) -> BufferedReader:
    """Open a regular file for reading. UserError for anything else, without blocking on a named pipe or a device."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{format_path(path)} cannot be read: {reason}; check the path") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{format_path(path)} is not a regular file; use a file")
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)
        if (states := _recorded_states.get()) is not None:
            states.setdefault(os.path.abspath(path), _file_state(os.fstat(handle)))
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
_recorded_states: ContextVar[FileStates | None] = ContextVar("recorded", default=None)


@contextmanager
def record_file_states() -> Iterator[FileStates]:
    """Record the files that are opened inside the context, each in its state when it was first opened."""
    states: FileStates = {}
    token = _recorded_states.set(states)
    try:
        yield states
    finally:
        _recorded_states.reset(token)


def current_states(paths: Iterable[str]) -> FileStates:
    """The current states of these files."""
    states: FileStates = {}
    for path in paths:
        try:
            states[path] = _file_state(os.stat(path))
        except OSError:
            states[path] = None
    return states


def _file_state(stat_result: os.stat_result) -> FileState:
    return FileState(stat_result.st_dev, stat_result.st_ino, stat_result.st_size, stat_result.st_mtime_ns)


def file_size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def expand(raw: IO[bytes], suffix: str, packed: int, source: str) -> Iterator[bytes]:
    """Decompress a stream of `packed` bytes by its suffix, in blocks of about 1 MiB. UserError beyond the limits; one
    of DAMAGE for a damaged stream.
    """
    size = 0
    for block in decompress(raw, suffix, source):
        size += len(block)
        check_expansion(source, packed, size, _ALWAYS_ALLOWED_LINES)
        yield block


def decompress(raw: IO[bytes], suffix: str, source: str) -> Iterator[bytes]:
    """Decompress a stream by its suffix, in blocks of at most about 1 MiB. UserError for too many frames; one of DAMAGE
    for a damaged stream.
    """
    if suffix == ".zst":
        return _decompress_zst(raw, source)
    if suffix in _FRAMES:
        return _decompress_frames(raw, source, *_FRAMES[suffix])
    return iter(lambda: raw.read(_BLOCK), b"")


class _FrameDecompressor(Protocol):
    """A decompressor of one frame: a member of .gz, a stream of .bz2 or .xz."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with the same interface as in bz2 and lzma."""

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


def _decompress_frames(
    raw: IO[bytes], source: str, new_frame: Callable[[], _FrameDecompressor], magic: bytes
) -> Iterator[bytes]:
    """Decompress each frame of a file, which may have several. Trailing data that do not start with `magic` are
    ignored, as by the formats' own tools; zeros are padding.
    """
    pending, count, size = raw.read(_READ_SIZE), 0, 0
    while pending:
        count += 1
        _check_frames(source, count, size)
        frame = new_frame()
        while not frame.eof:
            if frame.needs_input and not pending and not (pending := raw.read(_READ_SIZE)):
                raise EOFError("it ends in the middle of a stream")
            try:
                block = frame.decompress(pending if frame.needs_input else b"", _BLOCK)
            except OSError as error:  # from bz2
                raise zlib.error(str(error)) from error
            if block:
                size += len(block)
                yield block
            pending = b""
        pending = frame.unused_data.lstrip(b"\0")
        while not pending and (more := raw.read(_READ_SIZE)):
            pending = more.lstrip(b"\0")
        if not magic.startswith(pending[: len(magic)]):
            return


def _decompress_zst(raw: IO[bytes], source: str) -> Iterator[bytes]:
    """Decompress frame by frame, because only `eof` distinguishes a complete file from a truncated one."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{source} needs the package zstandard; run pip install 'headway[data]'") from error
    frame, count, size = zstandard.ZstdDecompressor().decompressobj(), 1, 0
    try:
        while block := raw.read(_SMALL_READ):
            while block:
                if frame.eof:
                    count += 1
                    _check_frames(source, count, size)
                    frame = zstandard.ZstdDecompressor().decompressobj()
                if output := frame.decompress(block):
                    size += len(output)
                    yield output
                block = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise UserError(f"{source} is damaged ({error}); download or compress it again") from error
    if not frame.eof:
        raise EOFError("it ends in the middle of a frame")


def _check_frames(source: str, count: int, size: int) -> None:
    """UserError for too many tiny frames: each takes time even if it is empty."""
    if count > _FREE_FRAMES + size // _BYTES_PER_FRAME:
        raise UserError(
            f"{source} has {count:,} compressed frames in its first {size:,} bytes; compress it again as one frame"
        )


# A decompressor for the next frame, and the first bytes of a frame. After .gz, other data are damage, as in gzip.
_FRAMES: dict[str, tuple[Callable[[], _FrameDecompressor], bytes]] = {
    ".gz": (_GzipMember, b""),
    ".bz2": (bz2.BZ2Decompressor, b"BZh"),
    ".xz": (lambda: lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY), b"\xfd7zXZ\0"),
}


@contextmanager
def damage_errors(path: object, kind: str, remedy: str) -> Iterator[None]:
    """Turn any exception that a library raises for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0][:200].rstrip(".")
        raise UserError(f"{path} is damaged or not {kind} ({reason}); {remedy}") from error
