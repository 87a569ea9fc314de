"""Open prepared data in a folder or behind a URL: the index, the tokenizer, and shards, of which only the last used are
mapped. Shards behind a URL are fetched into a cache of bounded size, which all processes of a machine share.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from headway.data.prepared.preparation import PLAN_FILE, WORK_FOLDER, file_digest_of
from headway.data.prepared.shard_files import REMEDY, map_file, map_shard
from headway.data.prepared.shard_index import INDEX_FILE, MAX_INDEX_BYTES, ShardFile, parse_index
from headway.errors import UserError
from headway.io.cache import cache_errors, cache_root, file_lock
from headway.io.durable import atomic_write, clean, decode_json
from headway.io.files import open_file
from headway.io.remote import MissingRemoteFileError, RemoteFolder, remote_url

_FORMAT_MARK = b'"headway-shards"'
_CACHED = re.compile(r"[0-9a-f]{64}\.safetensors")
_LIMIT_VARIABLE, _DEFAULT_LIMIT = "HEADWAY_SHARD_CACHE", 1 << 34  # bytes
_MAX_MAPPED = 1 << 29  # bytes
_MAP_ATTEMPTS = 3  # of a cached shard, which another process may remove before it is opened


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder of prepared data, or a URL, which can only be one. UserError if it was prepared only
    in part.
    """
    if remote_url(path) is not None:
        return True
    try:
        index = Path(path).expanduser() / INDEX_FILE
        if not index.is_file():
            if (index.parent / WORK_FOLDER / PLAN_FILE).is_file():
                raise UserError(f"{path} is prepared only in part; run the same headway data prepare again")
            with os.scandir(index.parent) as entries:
                first = next(entries, None)  # parts have the folder to themselves; others may have a million files
            if first is not None and Path(first).match("part-*-of-*") and (Path(first) / PLAN_FILE).is_file():
                raise UserError(f"{path} has parts of prepared data; join them with headway data prepare --join {path}")
            return False
    except (OSError, RuntimeError, ValueError):  # the reader of the path reports it
        return False
    with open_file(index) as file:
        return _FORMAT_MARK in file.read(100)


def is_index(path: Path) -> bool:
    """Whether a path is the index of prepared data, in their folder or behind a URL."""
    return path.name == INDEX_FILE and is_prepared(path.parent)


class PreparedData:
    """Prepared data at a path or URL. UserError if there is no index, or if it is damaged."""

    def __init__(self, location: Path | str) -> None:
        url = remote_url(location)
        self.folder, self.remote = Path(location).expanduser(), None if url is None else RemoteFolder(url)
        self.name = str(location) if url is None else url
        if self.remote is not None:
            address = self.remote.address(INDEX_FILE)
            try:
                content = self.remote.read(INDEX_FILE, MAX_INDEX_BYTES + 1)
            except MissingRemoteFileError:
                raise UserError(
                    f"{self.name} has no {INDEX_FILE}, and only prepared data are read from an address; prepare them "
                    "with headway data prepare, or download them"
                ) from None
        else:
            address = str(self.folder / INDEX_FILE)
            if not (self.folder / INDEX_FILE).is_file():
                raise UserError(f"{self.name} has no {INDEX_FILE}; prepare the data with headway data prepare")
            with open_file(self.folder / INDEX_FILE) as file:
                content = file.read(MAX_INDEX_BYTES + 1)
        if len(content) > MAX_INDEX_BYTES:
            raise UserError(f"{address} has more than {MAX_INDEX_BYTES:,} bytes; prepare the data in several folders")
        self.index = parse_index(decode_json(content, address, REMEDY), address, hashlib.sha256(content).hexdigest())

    def check_tokenizer(self, fingerprint: str) -> None:
        """UserError if the data were prepared with another tokenizer than that of a model."""
        if fingerprint != self.index.details.get("fingerprint"):
            raise UserError(
                f"{self.name} was prepared with another tokenizer than that of this model; prepare the data with "
                "--tokenizer and the model's folder"
            )

    def companion_folder(self) -> Path:
        """A local folder with the files next to the shards, whose digests are checked: a tokenizer, or a table."""
        folder = self.folder
        if self.remote is not None:
            folder = cache_root() / "prepared" / self.index.digest
            with cache_errors(folder):
                for name, (size, _) in self.index.codec.items():
                    if not (folder / name).exists():
                        with atomic_write(folder / name) as draft:
                            self.remote.fetch(name, size, draft)
        for name, (size, digest) in self.index.codec.items():
            is_missing = not (folder / name).is_file()
            if is_missing or file_digest_of(folder / name) != (size, digest):
                fault = "is missing" if is_missing else "has changed since the data were prepared"
                raise UserError(f"{folder / name} {fault}; {REMEDY}")
        return folder

    def map(self, shard: ShardFile) -> dict[str, np.ndarray]:
        """The arrays of a shard, whose digest is checked."""
        if self.remote is None:
            return map_shard(self.folder / shard.name, shard)
        remedy = f"upload {self.remote.address(shard.name)} again"
        for attempt in range(_MAP_ATTEMPTS):
            path = self.fetch(shard)
            try:
                return map_shard(path, shard, remedy)
            except UserError:  # it is damaged, or another process has removed it
                path.unlink(missing_ok=True)
                if attempt == _MAP_ATTEMPTS - 1:
                    raise
        raise AssertionError

    def fetch(self, shard: ShardFile) -> Path:
        """The cached file of a remote shard. If several processes need it, one fetches it."""
        folder = cache_root() / "shards"
        path = folder / f"{shard.digest}.safetensors"
        with cache_errors(folder), file_lock(folder / f"{shard.digest[:2]}.lock"):
            if path.exists():
                with suppress(OSError):
                    os.utime(path)  # the last use
                return path
            assert self.remote is not None
            clean(folder)
            draft = folder / f".{shard.digest}.{os.getpid()}-{threading.get_ident()}.fetched"
            try:
                self.remote.fetch(shard.name, shard.bytes, draft)
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            shrink_cache(folder, path)
        return path


def shrink_cache(folder: Path, kept: Path) -> None:
    """Remove the shards that were used longest ago until the rest fits the limit; `kept` stays, whatever its size, and
    so does every file that is not a fetched shard.
    """
    setting = os.environ.get(_LIMIT_VARIABLE, str(_DEFAULT_LIMIT))
    if not setting.isdecimal() or len(setting) > 18:
        raise UserError(f"{_LIMIT_VARIABLE} is {setting!r}; use a number of bytes, or unset it")
    files = []
    for path in folder.iterdir():
        if _CACHED.fullmatch(path.name) and path != kept:
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, path, status.st_size))
    size = kept.stat().st_size + sum(entry[2] for entry in files)
    for _, path, bytes_ in sorted(files):
        if size <= int(setting):
            return
        path.unlink(missing_ok=True)
        size -= bytes_


class ShardFetcher:
    """Fetches remote shards in a thread before they are needed."""

    def __init__(self, data: PreparedData, shards: Sequence[ShardFile]) -> None:
        self._data, self.shards = data, shards
        self._announced: set[int] = set()
        self._thread: ThreadPoolExecutor | None = None

    def announce(self, number: int) -> None:
        """Fetch a remote shard in the background, because it will be needed next."""
        if self._data.remote is None or number in self._announced:
            return
        self._announced.add(number)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "shards")
        self._thread.submit(self._fetch, number)

    def close(self) -> None:
        """Wait for the shards that are being fetched."""
        if self._thread is not None:
            self._thread.shutdown()

    def _fetch(self, number: int) -> None:
        with suppress(UserError):  # reported where the shard is needed
            self._data.fetch(self.shards[number])


class ShardReader(ShardFetcher):
    """Maps shards of a split on demand and keeps the last `limit`. Threads may share it."""

    def __init__(self, data: PreparedData, split: str, limit: int) -> None:
        super().__init__(data, data.index.splits[split])
        self.limit = limit
        self._mapped: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a shard, which is fetched if it is remote and not cached."""
        with self._lock:
            if number not in self._mapped:
                self._mapped[number] = self._data.map(self.shards[number])
                while len(self._mapped) > self.limit:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(number)
            self._announced.discard(number)
            return self._mapped[number]

    def announce(self, number: int) -> None:
        if number not in self._mapped:
            super().announce(number)


class MappedShards(ShardFetcher):
    """Reads samples of shards by offset. Only the bytes of these samples are read, so digests are not checked.
    The shards used last stay mapped, up to `limit` bytes. Threads may share it.
    """

    def __init__(self, data: PreparedData, shards: Sequence[ShardFile], limit: int = _MAX_MAPPED) -> None:
        super().__init__(data, shards)
        self._limit = limit
        self._mapped: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, number: int, start: int, size: int) -> memoryview:
        """`size` bytes of the samples of a shard from `start` on. A remote shard is fetched."""
        shard = self.shards[number]
        with self._lock:
            content = self._mapped.pop(number, None)
            if content is None:
                is_local = self._data.remote is None
                content = map_file(self._data.folder / shard.name if is_local else self._data.fetch(shard), shard)
                self._announced.discard(number)
            self._mapped[number] = content
            while len(self._mapped) > 1 and sum(map(len, self._mapped.values())) > self._limit:
                self._mapped.popitem(last=False)
        first = shard.bytes - shard.units + start  # the header comes first
        return content[first : first + size]

    def path(self, number: int) -> str:
        """The path or address of a shard, for messages."""
        name, remote = self.shards[number].name, self._data.remote
        return str(self._data.folder / name) if remote is None else remote.address(name)
