"""Archives (.zip, and .tar however it is compressed): what is in them, and each member's bytes."""

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
from headway.received import DAMAGE, check_expansion, decompressed, exceeded, limits, opened, size_of

E = TypeVar("E")
_ENTRY = 128  # bytes of a .zip's directory that a member may take on average: 46, and its name
_HEADER = 1 << 24  # bytes of a .tar that describe one member: name, links, times
_SLOW = 1 << 12  # bytes of a member whose method expands them all at once
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_LAST = threading.local()


class Packed(Protocol):
    """An archive that is open. `sizes` has the members that are files, and how many bytes each takes in it."""

    sizes: Mapping[str, int]

    def open(self, member: str) -> IO[bytes]:
        """A member's bytes. UserError for one that cannot be read."""
        ...


def open_packed(path: Path) -> Packed:
    """An archive. The last one of each thread stays open: its members are read one after the other, and listing them,
    or reaching the next one, takes a pass over what stands before. UserError for too many members; one of
    `received.DAMAGE` for what is no archive.
    """
    told = path.stat()
    key = path, told.st_ino, told.st_size, told.st_mtime_ns, os.getpid()
    if getattr(_LAST, "key", None) != key:
        _LAST.packed = _Zip(path) if path.suffix.lower() == ".zip" else _Tar(path)
        _LAST.key = key
    return _LAST.packed


def _found(entries: Mapping[str, E], member: str, path: Path) -> E:
    if member not in entries:
        raise UserError(f"{path} holds no {member} any more; read it again")
    return entries[member]


@contextmanager
def _sound(path: Path, file: io.RawIOBase) -> Iterator[None]:
    """What is raised for headers that make no sense, of many kinds, is damage; the file is closed then."""
    try:
        yield
    except BaseException as error:
        file.close()
        if not isinstance(error, Exception) or isinstance(error, (UserError, MemoryError, *DAMAGE)):
            raise
        raise tarfile.TarError(str(error) or type(error).__name__) from error


class _Directory(io.FileIO):
    """A .zip whose list of members, which is read at once, is not believed to be endless."""

    def __init__(self, path: Path, handle: int) -> None:
        super().__init__(handle)
        self._path, self.listing = path, True

    def read(self, size: int | None = -1, /) -> bytes:
        most = limits().members
        if self.listing and size is not None and size > max(1 << 20, most * _ENTRY):
            raise exceeded(str(self._path), f"lists its members in {size:,} bytes", "members")
        return super().read(size) or b""

    def __del__(self) -> None:
        self.close()  # with the last that reads a member


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(path) as stream:
            file = _Directory(path, os.dup(stream.fileno()))
        with _sound(path, file):
            self._archive = zipfile.ZipFile(cast(IO[bytes], file))
        file.listing = False
        self._entries = {entry.filename: entry for entry in self._archive.infolist() if not entry.is_dir()}
        if len(self._entries) > limits().members:
            raise exceeded(str(path), f"holds {len(self._entries):,} members", "members")
        self.sizes: Mapping[str, int] = {name: entry.compress_size for name, entry in self._entries.items()}

    def open(self, member: str) -> IO[bytes]:
        entry = _found(self._entries, member, self._path)
        if entry.flag_bits & 1:
            raise UserError(f"{self._path}: {member} is encrypted; unpack it with its password and pack it again")
        check_expansion(f"{self._path}: {member}", entry.compress_size, entry.file_size)
        try:
            stream = self._archive.open(entry)
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self._path}: {member} cannot be read ({error}); pack it again as .zip") from error
        quick = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        return stream if quick else cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, _Sips(stream))))


class _Sips(io.RawIOBase):
    """A member in small pieces: zipfile expands all that it reads of some methods, whatever it was asked for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        found = self._stream.read(min(len(buffer), _SLOW))
        buffer[: len(found)] = found
        return len(found)


class _Tar:
    def __init__(self, path: Path) -> None:
        raw = opened(path)
        start = raw.read(6)
        raw.seek(0)
        suffix = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), None)
        plain = raw if suffix is None else io.BufferedReader(_Decompressed(raw, suffix, str(path)))
        stream = _Bounded(path, raw, plain)
        self._path = path
        self._entries: dict[str, tarfile.TarInfo] = {}
        with _sound(path, stream):
            self._archive = tarfile.TarFile(fileobj=cast(IO[bytes], stream))
            self._list()
        self.sizes: Mapping[str, int] = {name: entry.size for name, entry in self._entries.items()}

    def _list(self) -> None:
        count = 0
        while (entry := self._archive.next()) is not None:
            self._archive.members.clear()  # type: ignore[attr-defined]  # of which it keeps a list of its own
            count += 1
            if count > limits().members:
                raise exceeded(str(self._path), f"holds over {count - 1:,} members", "members")
            if entry.isfile():
                self._entries[entry.name] = entry

    def open(self, member: str) -> IO[bytes]:
        entry = _found(self._entries, member, self._path)
        if entry.issparse():
            raise UserError(f"{self._path}: {member} is sparse; pack it again without --sparse")
        found = self._archive.extractfile(entry)
        assert found is not None
        return found


class _Decompressed(io.RawIOBase):
    """A compressed file as one that can be sought in: backwards, it is decompressed from its start again."""

    def __init__(self, raw: BinaryIO, suffix: str, what: str) -> None:
        self._raw, self._how = raw, (suffix, what)
        self._restart()

    def _restart(self) -> None:
        self._raw.seek(0)
        self._blocks, self._block, self._place = decompressed(self._raw, *self._how), memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def _take(self, most: int) -> memoryview:
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        taken, self._block = self._block[:most], self._block[most:]
        self._place += len(taken)
        return taken

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        taken = self._take(len(buffer))
        buffer[: len(taken)] = taken
        return len(taken)

    def seek(self, place: int, whence: int = 0, /) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a compressed file is sought in from its start only")
        if place < self._place:
            self._restart()
        while self._place < place and self._take(place - self._place):
            pass
        return self._place


class _Bounded(io.RawIOBase):
    """A .tar as it comes out of its compression, of which no header is read that fills the memory, and no more than the
    limits let through.
    """

    def __init__(self, path: Path, raw: BinaryIO, stream: BinaryIO) -> None:
        self._path, self._packed, self._raw, self._stream = path, size_of(raw), raw, stream

    def close(self) -> None:
        """By IOBase too, with the last that reads a member."""
        self._stream.close()
        self._raw.close()
        super().close()

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _HEADER:
            raise UserError(f"{self._path} describes a member in {size:,} bytes; pack it again")
        found = self._stream.read(size)
        check_expansion(str(self._path), self._packed, self._stream.tell())
        return found

    def seek(self, place: int, whence: int = 0, /) -> int:
        check_expansion(str(self._path), self._packed, place)  # all that stands before is expanded
        return self._stream.seek(place, whence)

    def tell(self) -> int:
        return self._stream.tell()
