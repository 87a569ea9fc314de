"""Uploads: files that a client sends in order to train on them. They are stored in RUNS/.uploads/ID/files until no run
uses them.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from headway.app.jobs import jobs
from headway.errors import UserError, printable
from headway.io.outputs import check_folder

FOLDER = ".uploads"
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
    """The disk has no space for an upload."""


class UploadTooLargeError(UserError):
    """An upload or one of its files is larger than the limits."""


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


class Upload:
    """The files of one upload. Its sizes are counted once, then kept up to date."""

    def __init__(self, folder: Path, limits: TrainingFileLimits) -> None:
        self.id, self.files, self._folder, self._limits = folder.name, folder / "files", folder, limits
        self._sizes: dict[str, int] = {}
        for parent, _, names in os.walk(self.files):
            for path in (Path(parent, name) for name in names):
                with suppress(OSError):
                    self._sizes[path.relative_to(self.files).as_posix()] = path.stat().st_size
        self._bytes = sum(self._sizes.values())

    def listing(self) -> list[UploadedFile]:
        """The files that have arrived completely."""
        return [UploadedFile(*item) for item in sorted(self._sizes.items())]

    async def receive(self, name: str, chunks: AsyncIterator[bytes], size: int | None) -> UploadedFile:
        """Write a file that arrives in chunks; it exists completely or not at all. UserError if its name or size is not
        allowed, or if the disk is full.
        """
        path = self.files / (name := safe_name(name))
        draft = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            self._check_space(name, size or 0, 0)
            with draft.open("xb") as file:
                written = await self._write(name, chunks, file)
            if size is not None and written != size:
                raise UserError(f"{printable(name)} arrived with {written:,} of {size:,} bytes; send it again")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir() or path.parent.resolve() != path.parent.absolute():
                raise UserError(f"{printable(name)} is a folder of this upload; choose another name")
            os.replace(draft, path)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"a folder of {printable(name)} is a file of this upload; choose another name") from None
        except OSError as error:
            raise DiskFullError(
                f"{printable(name)} cannot be stored ({error.strerror}); free space on the disk"
            ) from None
        finally:
            draft.unlink(missing_ok=True)
        self._bytes += written - self._sizes.get(name, 0)
        self._sizes[name] = written
        return UploadedFile(name, written)

    async def _write(self, name: str, chunks: AsyncIterator[bytes], file: BinaryIO) -> int:
        written = checked = 0
        async for chunk in chunks:
            written += len(chunk)
            if written - checked >= _CHECK_BYTES or written > self._limits.file_bytes:
                self._check_space(name, written, checked)
                checked = written
            file.write(chunk)
        self._check_space(name, written, written)
        return written

    def _check_space(self, name: str, size: int, written: int) -> None:
        """Raise UserError if a file of `size` bytes, of which some are `written`, is not allowed now."""
        limits, earlier = self._limits, self._sizes.get(name)
        if size > limits.file_bytes:
            raise UploadTooLargeError(
                f"{printable(name)} has more than {limits.file_bytes:,} bytes, the limit of a file; divide it"
            )
        if earlier is None and len(self._sizes) >= limits.files:
            raise UploadTooLargeError(f"the upload has {limits.files:,} files, which is the limit; choose fewer files")
        if self._bytes - (earlier or 0) + size > limits.upload_bytes:
            raise UploadTooLargeError(
                f"with {printable(name)} the upload has more than {limits.upload_bytes:,} bytes, which is the limit; "
                "choose fewer files"
            )
        if shutil.disk_usage(self._folder).free - (size - written) < limits.reserve:
            raise DiskFullError(
                f"the disk of the server has too little space for {printable(name)}: {limits.reserve:,} bytes must "
                "stay free; free space, or choose fewer files"
            )


_CHECK_BYTES = 1 << 26  # bytes between two checks of the free space


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
        """The upload with this id. KeyError if there is none."""
        folder = self._folder / upload_id
        if not _ID.fullmatch(upload_id) or not (folder / "files").is_dir():
            self._open.pop(upload_id, None)
            raise KeyError(upload_id)
        os.utime(folder)  # it is in use, so that it is not removed yet
        if upload_id not in self._open:
            self._open[upload_id] = Upload(folder, self.limits)
        return self._open[upload_id]

    def remove(self, upload: Upload) -> None:
        """Remove an upload. UserError if a run was trained on it, because the run could not be resumed."""
        if run := self._run_with(upload.id):
            raise UserError(f"the run {run} uses these files; delete the run first")
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
