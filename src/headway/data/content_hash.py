"""Content hashes: everything that a token cache depends on, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from headway.data.corpus import AlignedFiles
from headway.data.input_files import File, HubSplit
from headway.safe_io import open_file

_STRINGS_AT_ONCE = 4096  # strings joined at once


class Encoder(Protocol):
    """The part of a codec that caching needs."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def fingerprint(self) -> str: ...


def fingerprint(sources: Iterable[File | HubSplit | AlignedFiles]) -> str:
    """A hash of the sources' contents in order, with the file types and splits in their names.

    All bytes are hashed (about 1 GB/s), because sizes and times are not reliable; a hub dataset is identified by its
    cache hash.
    """
    digest = hashlib.blake2b(digest_size=16)
    hashes: dict[Path, bytes] = {}
    for source in sources:
        for file in (source.source, source.target) if isinstance(source, AlignedFiles) else (source,):
            if isinstance(file, HubSplit):
                # The old repr of a HubSplit, which keeps caches valid.
                fields = f"name={file.name!r}, config={file.config!r}, split={file.split!r}, side={file.named_split!r}"
                digest.update(f"(HubSplit({fields}, content={file.content!r}), {file.named_split!r})".encode())
                continue
            if file.path not in hashes:
                hashes[file.path] = _hash_of(file.path)
            digest.update(repr((hashes[file.path], file.member, file.kind, file.named_split)).encode())
    return digest.hexdigest()


def content_digest(values: Iterable[np.ndarray | Sequence[str]]) -> str:
    """A hash of the contents of arrays and lists of strings, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in values:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            continue
        digest.update(f"{len(part)} strings".encode())
        for start in range(0, len(part), _STRINGS_AT_ONCE):
            chunk = part[start : start + _STRINGS_AT_ONCE]
            digest.update(np.fromiter(map(len, chunk), np.int64, len(chunk)).data)
            digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hash_of(path: Path) -> bytes:
    with open_file(path) as file:
        return hashlib.file_digest(file, "blake2b").digest()
