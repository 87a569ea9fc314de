"""Content hashes: everything that a token cache depends on, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from headway.data.files import File, HubSplit
from headway.data.sources import Aligned
from headway.received import opened

_STRINGS = 4096  # joined at once


class Encoder(Protocol):
    """The part of a codec that caching needs."""

    @property
    def size(self) -> int: ...
    @property
    def begin(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def fingerprint(self) -> str: ...


def fingerprint(sources: Iterable[File | HubSplit | Aligned]) -> str:
    """A hash of the sources' contents in order, with the kinds and splits that their names state.

    All bytes are hashed (about 1 GB/s), because sizes and times are not reliable; a hub dataset is identified by its
    cache hash.
    """
    digest = hashlib.blake2b(digest_size=16)
    seen: dict[Path, bytes] = {}
    for source in sources:
        for file in (source.source, source.target) if isinstance(source, Aligned) else (source,):
            if isinstance(file, HubSplit):
                # The old repr of a HubSplit, which keeps caches valid.
                fields = f"name={file.name!r}, config={file.config!r}, split={file.split!r}, side={file.side!r}"
                digest.update(f"(HubSplit({fields}, content={file.content!r}), {file.side!r})".encode())
                continue
            if file.path not in seen:
                seen[file.path] = _hash_of(file.path)
            digest.update(repr((seen[file.path], file.member, file.kind, file.side)).encode())
    return digest.hexdigest()


def digest_of(values: Iterable[np.ndarray | Sequence[str]]) -> str:
    """A hash of the contents of arrays and lists of strings, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for each in values:
        if isinstance(each, np.ndarray):
            digest.update(f"{each.dtype.str}{each.shape}".encode())
            digest.update(np.ascontiguousarray(each).reshape(-1).view(np.uint8).data)
            continue
        digest.update(f"{len(each)} strings".encode())
        for start in range(0, len(each), _STRINGS):
            some = each[start : start + _STRINGS]
            digest.update(np.fromiter(map(len, some), np.int64, len(some)).data)
            digest.update("".join(some).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hash_of(path: Path) -> bytes:
    with opened(path) as file:
        return hashlib.file_digest(file, "blake2b").digest()
