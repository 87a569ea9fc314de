"""Find known data sets on this machine, and download them from their public sources."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from headway.data.array_store import cache_errors, cache_root
from headway.data.catalogue import KNOWN_SETS, KnownFile, KnownSet
from headway.data.corpus import iter_pairs
from headway.data.episode_files import read_episodes
from headway.data.idx import read_idx
from headway.data.input_files import File, archive_members, read_lines
from headway.errors import UserError, nearest
from headway.temporary_files import temporary_path


def known_set(name: str) -> KnownSet:
    """A known set by name; UserError with the nearest name if it is unknown."""
    if name not in KNOWN_SETS:
        raise UserError(f"there is no known data set {name!r}; {nearest(name, KNOWN_SETS)}")
    return KNOWN_SETS[name]


def known_sets() -> list[KnownSet]:
    """All known sets, by name."""
    return [KNOWN_SETS[name] for name in sorted(KNOWN_SETS)]


def data_folders() -> list[Path]:
    """The folders in which known sets are searched, in order: HEADWAY_DATA, then headway's downloads."""
    setting = os.environ.get("HEADWAY_DATA")
    return [*([Path(setting).expanduser()] if setting else []), cache_root() / "data"]


def is_present(known: KnownSet) -> bool:
    """Whether all files of a set are on this machine."""
    return bool(_find_files(known))


def find_set(name: str) -> list[Path]:
    """The files of a known set, ready for `iter_documents` or `iter_pairs`. If files are missing, a UserError explains
    how to get them.
    """
    known = known_set(name)
    if paths := _find_files(known):
        return paths
    if known.package is not None:
        raise UserError(
            f"data set {name!r} is part of a package that is not installed; pip install {known.pip or known.package}"
        )
    if any(not file.url for file in known.files):
        raise manual_download_error(known)
    folders = " or ".join(map(str, data_folders()))
    raise UserError(f"data set {name!r} is not in {folders}; run: headway data get {name}")


def manual_download_error(known: KnownSet) -> UserError:
    """The error for a missing set that cannot be downloaded."""
    files = ", ".join(file.path for file in known.files)
    return UserError(
        f"data set {known.name!r} is missing and cannot be downloaded; create it from {known.url}, put {files} into a "
        "folder and set HEADWAY_DATA to it"
    )


def _find_files(known: KnownSet) -> list[Path]:
    """All files of a set from one folder; empty if no folder has them all."""
    if known.package is not None and known.package_file is not None:
        # The package is located, not imported: only its data is needed.
        spec = importlib.util.find_spec(known.package)
        return [] if spec is None or spec.origin is None else [Path(spec.origin).parent / known.package_file]
    for folder in data_folders():
        paths = [_find_file(folder, file) for file in known.files]
        if all(paths):
            return [path for path in paths if path is not None]
    for folder in map(Path, known.system_folders):
        paths = [folder / Path(file.path).name for file in known.files]
        if all(path.is_file() for path in paths):
            return paths
    return []


def _find_file(folder: Path, file: KnownFile) -> Path | None:
    paths = [folder / path for path in (file.path, file.alternative) if path is not None]
    return next((path for path in paths if path.is_file()), None)


_BLOCK_SIZE = 1 << 16
_TIMEOUT = 60.0  # seconds without a byte


def get_set(name: str, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """The files of a known set; missing ones are downloaded to headway's cache."""
    known = known_set(name)
    return find_set(name) if is_present(known) or known.package else download(known, cache_root() / "data", progress)


def download(known: KnownSet, folder: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Download the missing files of a set into `folder` and return its files.

    `progress` is called with bytes done and total bytes (0 if unknown). UserError if there is no connection, a file is
    too large or fails verification, the disk is full, or the set cannot be downloaded; no partial files remain.
    """
    if any(not file.url for file in known.files):
        raise manual_download_error(known)
    for file in known.files:
        if not (folder / file.path).is_file():
            _download_and_verify(file, folder / file.path, progress)
    return [folder / file.path for file in known.files]


def _download_and_verify(file: KnownFile, final: Path, progress: Callable[[int, int], None] | None) -> None:
    with cache_errors(final.parent):
        # The name keeps its extension, because verification reads the file by its extension.
        part = temporary_path(final, f"draft{final.suffix}")
        try:
            digest = _download_file(file, part, progress)
            _verify(file, part, digest)
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)


def _download_file(file: KnownFile, part: Path, progress: Callable[[int, int], None] | None) -> str:
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "headway"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, open(part, "wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(_BLOCK_SIZE):
                done += len(block)
                if max(done, total) > file.limit:
                    raise UserError(
                        f"{file.url} has {max(done, total):,} bytes or more, over the limit of {file.limit:,}; "
                        "download it by hand if it has grown"
                    )
                digest.update(block)
                out.write(block)
                if progress is not None:
                    progress(done, total)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(error).strip("<>") or type(error).__name__
        raise UserError(f"{file.url} cannot be downloaded ({reason}); try again, or download it by hand") from error
    if done < total:
        raise UserError(f"{file.url} stopped after {done:,} of {total:,} bytes; try again")
    return digest.hexdigest()


def _verify(file: KnownFile, part: Path, digest: str) -> None:
    if file.sha256 is not None and digest != file.sha256:
        raise UserError(
            f"{file.url} has the SHA-256 {digest}, not {file.sha256}: it has changed or was damaged; "
            "try again, or download it by hand"
        )
    if file.lines is not None:
        actual = sum(1 for _ in read_lines(File(part)))
        if actual != file.lines:
            raise UserError(f"{file.url} has {actual:,} lines, not {file.lines:,}; try again")
    if file.sizes is not None:
        actual = read_idx(part, len(file.sizes)).shape
        if actual != file.sizes:
            raise UserError(f"{file.url} has the sizes {actual}, not {file.sizes}; try again")
    if file.pairs is not None:
        actual = sum(1 for _ in iter_pairs([part]))
        if actual < file.pairs:
            raise UserError(f"{file.url} has {actual:,} pairs, fewer than {file.pairs:,}; try again")
    if file.sounds is not None:
        actual = sum(1 for member in archive_members(part) if member.kind == ".wav")
        if actual != file.sounds:
            raise UserError(f"{file.url} has {actual:,} .wav files, not {file.sounds:,}; try again")
    if file.episodes is not None:
        actual = len(read_episodes([part]))
        if actual != file.episodes:
            raise UserError(f"{file.url} has {actual:,} episodes, not {file.episodes:,}; try again")
