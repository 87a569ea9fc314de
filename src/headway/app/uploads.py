"""Uploads: files that a client sends in order to train on them. They are stored in RUNS/.uploads/ID/files until no run
uses them.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from headway.app.jobs import jobs
from headway.errors import UserError, printable
from headway.io.outputs import check_folder

FOLDER = ".uploads"
USED = "used"  # empty file next to the files of an upload, from the start of a run on it
_ID = re.compile(r"[0-9a-f]{20}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\\]")
_MAX_PART, _MAX_DEPTH = 200, 16  # bytes of a file or folder name; folders above a file
_UNUSED_SECONDS = 86_400  # age at which an upload that no run uses is removed
_SHOWN = 60  # characters of a name in a message


class TrainingFileLimits(NamedTuple):
    """What an upload may have: bytes of one file and of all files, the number of files, and the bytes of the disk that
    stay free.
    """

    file_bytes: int = 4 << 30
    upload_bytes: int = 20 << 30
    files: int = 100_000
    reserve: int = 1 << 30


DEFAULT_LIMITS = TrainingFileLimits()


class DiskFullError(UserError):
    """The disk has no space for an upload, or cannot store it for another reason."""


class UploadTooLargeError(UserError):
    """An upload or one of its files is larger than the limits."""


class UploadUsedError(UserError):
    """A run uses the upload, so that it must stay as it is."""


class UploadRemovedError(UserError):
    """The upload was removed."""


class UploadedFile(NamedTuple):
    """A file that has arrived: its name, with folders, and its size in bytes."""

    name: str
    size: int


def safe_name(name: str) -> str:
    """A file's name, with folders, in which control characters are replaced. UserError for absolute and hidden names,
    for .. and for names that are too long.
    """
    parts = _CONTROL.sub("_", name).split("/")
    shown = printable(name[:_SHOWN]) + "..." * (len(name) > _SHOWN)
    if not all(part.strip() for part in parts):
        raise UserError(f"{shown!r} is not the name of a file; use a name such as photos/cat/1.png")
    if any(part.startswith(".") for part in parts):
        raise UserError(f"{shown!r} has a part that starts with a dot; leave hidden files out")
    if len(parts) > _MAX_DEPTH or any(len(part.encode()) > _MAX_PART for part in parts):
        raise UserError(
            f"the name {shown!r} is too long; use at most {_MAX_DEPTH} folders, and {_MAX_PART} bytes for each name"
        )
    return "/".join(parts)


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Report errors of the disk while `name` is stored in an upload."""
    shown = printable(name)
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"a folder of {shown} is a file of this upload; choose another name") from None
    except FileNotFoundError:
        raise UploadRemovedError(f"the upload was removed before {shown} was stored; send the files again") from None
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space on the disk" if is_full else "check the server's folder of runs"
        raise DiskFullError(f"{shown} cannot be stored ({error.strerror}); {remedy}") from None


class Upload:
    """The files of one upload. Its sizes are counted once, then kept up to date; also by `refresh` if another server
    has changed it.
    """

    def __init__(self, folder: Path, limits: TrainingFileLimits) -> None:
        self.id, self.files, self._folder, self._limits = folder.name, folder / "files", folder, limits
        self._sizes: dict[str, int] = {}
        self._bytes, self._changed = 0, -1  # `_changed`: time of the folder when it was read, in ns
        self._arriving: dict[Path, tuple[str, int]] = {}  # name and bytes of each draft
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again if it has changed."""
        with suppress(FileNotFoundError):  # removed by another server
            if self._changed == (changed := self.files.stat().st_mtime_ns):
                return
            self._sizes, self._changed = {}, changed
            for parent, _, names in os.walk(self.files):
                for path in (Path(parent, name) for name in names):
                    with suppress(OSError):
                        self._sizes[path.relative_to(self.files).as_posix()] = path.stat().st_size
            self._bytes = sum(self._sizes.values())

    def listing(self) -> list[UploadedFile]:
        """The files that have arrived completely."""
        return [UploadedFile(*item) for item in sorted(self._sizes.items())]

    def digest(self) -> str:
        """A number of the names, sizes and times of all files, which changes when one of them does."""
        total = hashlib.blake2b(digest_size=16)
        for name in sorted(self._sizes):
            with suppress(OSError):  # removed by another program, which changes the number, too
                status = (self.files / name).stat()
                total.update(f"{name}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
        return total.hexdigest()

    def remove(self, name: str) -> None:
        """Remove a file or a folder with its files. KeyError if it does not exist."""
        path = self.files / safe_name(name)
        if path.parent.resolve() != path.parent.absolute() or not os.path.lexists(path):
            raise KeyError(name)
        with storage_errors(name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            os.utime(self.files, ns=(now := time.time_ns(), now))
        self._changed = -1
        self.refresh()

    @property
    def is_marked(self) -> bool:
        """Whether a run was started on it."""
        return (self._folder / USED).exists()

    async def receive(
        self, name: str, chunks: AsyncIterator[bytes], size: int | None, check: Callable[[], None]
    ) -> UploadedFile:
        """Write a file that arrives in chunks; it exists completely or not at all. `check` is called before the file is
        replaced. UserError if its name or size is not allowed, if the disk is full, or if the upload is removed.
        """
        path = self.files / (name := safe_name(name))
        draft = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            with storage_errors(name):
                self._reserve(draft, name, size or 0)
                self._check_disk(name, size or 0)
                with draft.open("xb") as file:
                    written = await self._write(draft, name, chunks, size or 0, file)
                if size is not None and written != size:
                    raise UserError(f"{printable(name)} arrived with {written:,} of {size:,} bytes; send it again")
                check()
                self._store(draft, path, name)
        finally:
            self._arriving.pop(draft, None)
            draft.unlink(missing_ok=True)
        self._bytes += written - self._sizes.get(name, 0)
        self._sizes[name] = written
        return UploadedFile(name, written)

    async def _write(self, draft: Path, name: str, chunks: AsyncIterator[bytes], size: int, file: BinaryIO) -> int:
        """Write the chunks in threads, so that a slow disk does not stop the server; return the number of bytes."""
        buffer, written, checked = bytearray(), 0, 0
        async for chunk in chunks:
            written += len(chunk)
            self._reserve(draft, name, max(size, written))
            if written - checked >= _CHECK_BYTES:
                self._check_disk(name, written - checked)
                checked = written
            buffer += chunk
            if len(buffer) >= _WRITE_BYTES:
                await asyncio.to_thread(file.write, buffer)
                buffer = bytearray()
        self._check_disk(name, len(buffer))
        await asyncio.to_thread(file.write, buffer)
        return written

    def _store(self, draft: Path, path: Path, name: str) -> None:
        """Move a complete draft to its place, and change the time of the folder for other servers."""
        is_current = self.files.stat().st_mtime_ns == self._changed
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or path.parent.resolve() != path.parent.absolute():
            raise UserError(f"{printable(name)} is a folder of this upload; choose another name")
        os.replace(draft, path)
        os.utime(self.files, ns=(now := time.time_ns(), now))
        self._changed = self.files.stat().st_mtime_ns if is_current else -1

    def _reserve(self, draft: Path, name: str, size: int) -> None:
        """Count a file of `size` bytes that arrives. UserError if it is not allowed next to the other files."""
        limits, earlier = self._limits, self._sizes.get(name)
        others = [other for path, other in self._arriving.items() if path != draft]
        new_names = {other for other, _ in others if other != name and other not in self._sizes}
        if size > limits.file_bytes:
            raise UploadTooLargeError(
                f"{printable(name)} has more than {limits.file_bytes:,} bytes, the limit of a file; divide it"
            )
        if earlier is None and len(self._sizes) + len(new_names) >= limits.files:
            raise UploadTooLargeError(f"the upload has {limits.files:,} files, which is the limit; choose fewer files")
        if self._bytes - (earlier or 0) + size + sum(other for _, other in others) > limits.upload_bytes:
            raise UploadTooLargeError(
                f"with {printable(name)} the upload has more than {limits.upload_bytes:,} bytes, which is the limit; "
                "choose fewer files"
            )
        self._arriving[draft] = name, size

    def _check_disk(self, name: str, size: int) -> None:
        """Raise DiskFullError if `size` more bytes would take the space that must stay free."""
        reserve = self._limits.reserve
        if shutil.disk_usage(self._folder).free - size < reserve:
            raise DiskFullError(
                f"the disk of the server has too little space for {printable(name)}: {reserve:,} bytes must "
                "stay free; free space, or choose fewer files"
            )


_CHECK_BYTES = 1 << 26  # bytes between two checks of the free space
_WRITE_BYTES = 1 << 20  # bytes per write


class Uploads:
    """The uploads of a folder of runs."""

    def __init__(self, runs: Path, limits: TrainingFileLimits = DEFAULT_LIMITS) -> None:
        self._runs, self._folder, self.limits = runs, runs / FOLDER, limits
        self._open: dict[str, Upload] = {}

    def create(self) -> Upload:
        """A new upload. Those that no run has used for a day are removed first."""
        self._sweep()
        folder = self._folder / secrets.token_hex(10)
        try:
            self._runs.mkdir(parents=True, exist_ok=True)
            check_folder(self._folder)
            (folder / "files").mkdir(parents=True)
        except OSError as error:
            raise DiskFullError(f"{self._folder.name} cannot be created ({error.strerror}); correct this") from None
        return self.find(folder.name)

    def find(self, upload_id: str) -> Upload:
        """The upload with this id. KeyError if it does not exist."""
        folder = self._folder / upload_id
        if not _ID.fullmatch(upload_id) or not (folder / "files").is_dir():
            self._open.pop(upload_id, None)
            raise KeyError(upload_id)
        os.utime(folder)  # it is in use, so that it is not removed yet
        if upload_id not in self._open:
            self._open[upload_id] = Upload(folder, self.limits)
        self._open[upload_id].refresh()
        return self._open[upload_id]

    async def receive(self, upload: Upload, name: str, chunks: AsyncIterator[bytes], size: int | None) -> UploadedFile:
        """Store a file as `Upload.receive` does. UploadUsedError if a run was trained on the upload, because it could
        not be resumed.
        """
        self.check_unused(upload)
        return await upload.receive(name, chunks, size, lambda: self.check_unused(upload))

    def check_unused(self, upload: Upload) -> None:
        """Raise UploadUsedError if a run was trained on an upload, so that its files must stay as they are."""
        if upload.is_marked and (run := self._run_with(upload.id)):
            raise UploadUsedError(f"the run {run} uses these files; begin another upload")

    def remove(self, upload: Upload) -> None:
        """Remove an upload. UserError if a run was trained on it, because the run could not be resumed."""
        if run := self._run_with(upload.id):
            raise UploadUsedError(f"the run {run} uses these files; delete the run first")
        self._open.pop(upload.id, None)
        shutil.rmtree(self._folder / upload.id, ignore_errors=True)

    def _sweep(self) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            for folder in list(self._folder.iterdir()):
                with suppress(OSError):
                    is_old = time.time() - folder.stat().st_mtime > _UNUSED_SECONDS
                    if _ID.fullmatch(folder.name) and is_old and not self._run_with(folder.name):
                        self._open.pop(folder.name, None)
                        shutil.rmtree(folder, ignore_errors=True)

    def _run_with(self, upload_id: str) -> str | None:
        """The name of a run, a deleted run that may come back, or a running job with these files; None if there is
        none.
        """
        part = f"/{upload_id}/files"
        for job in jobs(self._runs).values():
            if job.state == "running" and any(part in word for word in job.command):
                return job.name
        for pattern in ("*/recipe.json", ".*/*/recipe.json"):
            for path in self._runs.glob(pattern):
                with suppress(OSError):
                    if part in path.read_text(encoding="utf-8", errors="replace"):
                        return path.parent.name
        return None
