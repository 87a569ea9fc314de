"""Names for contents: what a cache of tokens depends on, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from headway.data.files import File, HubSplit
from headway.data.sources import Aligned
from headway.received import opened

_STRINGS = 4096  # that are joined at once


class Encoder(Protocol):
    """What caching asks of a codec."""

    @property
    def size(self) -> int: ...
    @property
    def begin(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def fingerprint(self) -> str: ...


def fingerprint(sources: Iterable[File | HubSplit | Aligned]) -> str:
    """A name for the contents of sources in their order, with the kinds and splits that their names state.

    Bytes are hashed (about 1 GB/s), because sizes and times say nothing sure; a dataset of the hub is known
    by the hash that it is cached under.
    """
    digest = hashlib.blake2b(digest_size=16)
    seen: dict[Path, bytes] = {}
    for source in sources:
        for file in (source.source, source.target) if isinstance(source, Aligned) else (source,):
            if isinstance(file, HubSplit):
                digest.update(repr((file, file.side)).encode())
                continue
            if file.path not in seen:
                seen[file.path] = _hash_of(file.path)
            digest.update(repr((seen[file.path], file.member, file.kind, file.side)).encode())
    return digest.hexdigest()


def digest_of(values: Iterable[np.ndarray | Sequence[str]]) -> str:
    """A name for arrays and lists of strings by what they hold, in their order."""
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
