"""Archives (.zip, and .tar with any compression): their members, and each member's bytes."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol, TypeVar, cast

from headway.errors import UserError
from headway.io.files import DAMAGE, check_expansion, decompress, file_size, limit_error, open_file, read_limits

E = TypeVar("E")
_ENTRY_SIZE = 128  # average bytes per member in a .zip's directory: 46 plus its name
_MAX_HEADER = 1 << 24  # bytes per .tar header: name, links, times
_CHUNK_SIZE = 1 << 12  # bytes read at once with methods that expand everything they read
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_THREAD_CACHE = threading.local()


class Archive(Protocol):
    """An open archive. `sizes` maps each member that is a file to its bytes in the archive."""

    sizes: Mapping[str, int]

    def open(self, member: str) -> IO[bytes]:
        """A member's bytes. UserError if it cannot be read."""
        ...


def open_archive(path: Path) -> Archive:
    """Open an archive. Each thread keeps its last archive open, because members are read in sequence, and listing
    them or reaching the next one takes a pass over the preceding data. UserError for too many members; one of the
    exceptions in DAMAGE if it is not an archive.
    """
    status = path.stat()
    key = path, status.st_ino, status.st_size, status.st_mtime_ns, os.getpid()
    if getattr(_THREAD_CACHE, "key", None) != key:
        _THREAD_CACHE.packed = _ZipArchive(path) if path.suffix.lower() == ".zip" else _TarArchive(path)
        _THREAD_CACHE.key = key
    return _THREAD_CACHE.packed


def _find_entry(entries: Mapping[str, E], member: str, path: Path) -> E:
    if member not in entries:
        raise UserError(f"{path} no longer contains {member}; run the command again")
    return entries[member]


@contextmanager
def _damage_errors(path: Path, file: io.RawIOBase) -> Iterator[None]:
    """On an error, close the file, and raise the many exceptions for invalid headers as TarError."""
    try:
        yield
    except BaseException as error:
        file.close()
        if not isinstance(error, Exception) or isinstance(error, (UserError, MemoryError, *DAMAGE)):
            raise
        raise tarfile.TarError(str(error) or type(error).__name__) from error


class _LimitedFile(io.FileIO):
    """A .zip file that limits the size of its member list, which is read at once."""

    def __init__(self, path: Path, handle: int) -> None:
        super().__init__(handle)
        self._path, self.listing = path, True

    def read(self, size: int | None = -1, /) -> bytes:
        max_members = read_limits().members
        if self.listing and size is not None and size > max(1 << 20, max_members * _ENTRY_SIZE):
            raise limit_error(str(self._path), f"lists its members in {size:,} bytes", "members")
        return super().read(size) or b""

    def __del__(self) -> None:
        self.close()  # when the last reader of a member is gone


class _ZipArchive:
    def __init__(self, path: Path) -> None:
        self._path = path
        with open_file(path) as stream:
            file = _LimitedFile(path, os.dup(stream.fileno()))
        with _damage_errors(path, file):
            self._archive = zipfile.ZipFile(cast(IO[bytes], file))
        file.listing = False
        self._entries = {entry.filename: entry for entry in self._archive.infolist() if not entry.is_dir()}
        if len(self._entries) > read_limits().members:
            raise limit_error(str(path), f"has {len(self._entries):,} members", "members")
        self.sizes: Mapping[str, int] = {name: entry.compress_size for name, entry in self._entries.items()}

    def open(self, member: str) -> IO[bytes]:
        entry = _find_entry(self._entries, member, self._path)
        if entry.flag_bits & 1:
            raise UserError(f"{self._path}: {member} is encrypted; extract it with its password first")
        check_expansion(f"{self._path}: {member}", entry.compress_size, entry.file_size)
        try:
            stream = self._archive.open(entry)
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self._path}: {member} cannot be read ({error}); create the .zip again") from error
        quick = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        return stream if quick else cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, _ChunkedReader(stream))))


class _ChunkedReader(io.RawIOBase):
    """A member read in small chunks: for some methods, zipfile expands everything it reads, not what was requested."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        chunk = self._stream.read(min(len(buffer), _CHUNK_SIZE))
        buffer[: len(chunk)] = chunk
        return len(chunk)


class _TarArchive:
    def __init__(self, path: Path) -> None:
        raw = open_file(path)
        start = raw.read(6)
        raw.seek(0)
        suffix = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), None)
        plain = raw if suffix is None else io.BufferedReader(_SeekableDecompressor(raw, suffix, str(path)))
        stream = _LimitedTar(path, raw, plain)
        self._path = path
        self._entries: dict[str, tarfile.TarInfo] = {}
        with _damage_errors(path, stream):
            self._archive = tarfile.TarFile(fileobj=cast(IO[bytes], stream))
            count = 0
            while (entry := self._archive.next()) is not None:
                self._archive.members.clear()  # type: ignore[attr-defined]  # tarfile's own list would grow
                count += 1
                if count > read_limits().members:
                    raise limit_error(str(self._path), f"has over {count - 1:,} members", "members")
                if entry.isfile():
                    self._entries[entry.name] = entry
        self.sizes: Mapping[str, int] = {name: entry.size for name, entry in self._entries.items()}

    def open(self, member: str) -> IO[bytes]:
        entry = _find_entry(self._entries, member, self._path)
        if entry.issparse():
            raise UserError(f"{self._path}: {member} is sparse; create the .tar again without --sparse")
        stream = self._archive.extractfile(entry)
        assert stream is not None
        return stream


class _SeekableDecompressor(io.RawIOBase):
    """A seekable view of a compressed file: seeking backwards decompresses it from the start again."""

    def __init__(self, raw: BinaryIO, suffix: str, name: str) -> None:
        self._raw, self._decompression = raw, (suffix, name)
        self._restart()

    def _restart(self) -> None:
        self._raw.seek(0)
        self._blocks, self._block, self._position = decompress(self._raw, *self._decompression), memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def _take(self, max_bytes: int) -> memoryview:
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        chunk, self._block = self._block[:max_bytes], self._block[max_bytes:]
        self._position += len(chunk)
        return chunk

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        chunk = self._take(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def seek(self, position: int, whence: int = 0, /) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("seeking in a compressed file works from its start only")
        if position < self._position:
            self._restart()
        while self._position < position and self._take(position - self._position):
            pass
        return self._position


class _LimitedTar(io.RawIOBase):
    """A decompressed .tar with limits on header size and total size."""

    def __init__(self, path: Path, raw: BinaryIO, stream: BinaryIO) -> None:
        self._path, self._packed_size, self._raw, self._stream = path, file_size(raw), raw, stream

    def close(self) -> None:
        """Close the file; IOBase also calls this when the last reader of a member is gone."""
        self._stream.close()
        self._raw.close()
        super().close()

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise UserError(f"{self._path} has a member header of {size:,} bytes; create the archive again")
        block = self._stream.read(size)
        check_expansion(str(self._path), self._packed_size, self._stream.tell())
        return block

    def seek(self, position: int, whence: int = 0, /) -> int:
        check_expansion(str(self._path), self._packed_size, position)  # all preceding data is expanded
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()
