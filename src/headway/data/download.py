"""Fetch known sets from their public homes: limited in size, verified, and there only when whole."""

from __future__ import annotations

import hashlib
import http.client
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from headway.data.catalogue import KnownFile, KnownSet
from headway.data.files import File, lines, members
from headway.data.idx import read_idx
from headway.data.recordings import read_episodes
from headway.data.registry import find_set, is_present, known_set, made_by_hand
from headway.data.sources import pairs
from headway.data.store import cache_root, writing
from headway.errors import UserError

_BLOCK = 1 << 16
_PATIENCE = 60.0  # seconds without a byte


def get(name: str, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """The files of a known set; what is not on this machine yet is downloaded to headway's cache."""
    known = known_set(name)
    return find_set(name) if is_present(known) or known.package else download(known, cache_root() / "data", progress)


def download(known: KnownSet, folder: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Fetch what is missing of a set into `folder` and give its files.

    `progress` is called with bytes done and bytes in all (0: the server does not say). UserErrors: no
    connection, too large, not what it should be, disk full, a set that no server has; nothing half-made is left.
    """
    if any(not file.url for file in known.files):
        raise made_by_hand(known)
    for file in known.files:
        if not (folder / file.path).is_file():
            _fetch(file, folder / file.path, progress)
    return [folder / file.path for file in known.files]


def _fetch(file: KnownFile, final: Path, progress: Callable[[int, int], None] | None) -> None:
    with writing(final.parent):
        # The name keeps its end, because verifying reads the file by its extension.
        part = final.with_name(f".{secrets.token_hex(4)}.part.{final.name}")
        try:
            digest = _receive(file, part, progress)
            _verify(file, part, digest)
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)


def _receive(file: KnownFile, part: Path, progress: Callable[[int, int], None] | None) -> str:
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "headway"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer, open(part, "wb") as out:
            total = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(_BLOCK):
                done += len(block)
                if max(done, total) > file.limit:
                    raise UserError(
                        f"{file.url} has {max(done, total):,} bytes or more, over the {file.limit:,} expected; "
                        "fetch it by hand if it has grown"
                    )
                digest.update(block)
                out.write(block)
                if progress is not None:
                    progress(done, total)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(error).strip("<>") or type(error).__name__
        raise UserError(f"{file.url} cannot be fetched ({reason}); try again, or fetch it by hand") from error
    if done < total:
        raise UserError(f"{file.url} broke off after {done:,} of {total:,} bytes; try again")
    return digest.hexdigest()


def _verify(file: KnownFile, part: Path, digest: str) -> None:
    if file.sha256 is not None and digest != file.sha256:
        raise UserError(
            f"{file.url} has the SHA-256 {digest}, not {file.sha256}: it has changed or was damaged; "
            "try again, or fetch it by hand"
        )
    if file.lines is not None:
        found = sum(1 for _ in lines(File(part)))
        if found != file.lines:
            raise UserError(f"{file.url} has {found:,} lines, not {file.lines:,}; try again")
    if file.sizes is not None:
        found = read_idx(part, len(file.sizes)).shape
        if found != file.sizes:
            raise UserError(f"{file.url} has the sizes {found}, not {file.sizes}; try again")
    if file.pairs is not None:
        found = sum(1 for _ in pairs([part]))
        if found < file.pairs:
            raise UserError(f"{file.url} has {found:,} pairs, fewer than {file.pairs:,}; try again")
    if file.sounds is not None:
        found = sum(1 for inside in members(part) if inside.kind == ".wav")
        if found != file.sounds:
            raise UserError(f"{file.url} has {found:,} .wav files, not {file.sounds:,}; try again")
    if file.episodes is not None:
        found = len(read_episodes([part]))
        if found != file.episodes:
            raise UserError(f"{file.url} has {found:,} episodes, not {file.episodes:,}; try again")
