"""Sources behind addresses, as local stand-ins: files with the same names, sizes and order, whose contents are fetched
block by block. Readers of folders and tables need not know of addresses.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from headway.data.array_store import cache_key, open_or_build
from headway.data.input_files import file_kind
from headway.data.labelled_files import is_idx
from headway.data.prepared.shard_index import INDEX_FILE
from headway.data.table_files import TABLE_KINDS
from headway.errors import UserError
from headway.io.cache import cache_errors
from headway.io.files import open_file
from headway.io.remote import RemoteEntry, RemoteFolder, remote_url

_READ = 1 << 20  # bytes
_REQUESTS = 8  # at once, per process


class _StandIn(NamedTuple):
    """A local path that stands for a folder or file behind a URL."""

    path: Path
    remote: RemoteFolder


class SourceFiles:
    """The local `paths` of the data to prepare. A URL becomes a path below `folder`, where readers find the names and
    sizes of its files. Files of `copied` kinds (extensions) are copies, and so is a single file at a URL if there are
    such kinds; others have no content until they are fetched. With `siblings`, a single table comes with the files next
    to it, which it names.

    UserError for local paths next to URLs: a table behind a URL may not name local files.
    """

    def __init__(
        self, paths: Sequence[Path] = (), folder: Path = Path(), copied: Collection[str] = (), siblings: bool = False
    ) -> None:
        self._folder, self._copied = folder, copied
        self._stand_ins: list[_StandIn] = []
        urls = [remote_url(path) for path in paths]
        local = next((path for path, url in zip(paths, urls) if url is None), None)
        if any(urls) and local is not None:
            raise UserError(f"{local} is a local path next to a URL; prepare them one after the other")
        self.paths = [path if url is None else self._stand_in(url, siblings) for path, url in zip(paths, urls)]

    def _stand_in(self, url: str, siblings: bool) -> Path:
        parent, _, name = url.partition("?")[0].rstrip("/").rpartition("/")
        remote, inner = RemoteFolder(url), Path(name)
        entries = remote.entries()
        if siblings and "" in entries and file_kind(name) in TABLE_KINDS:
            remote, inner = RemoteFolder(parent), Path(PurePosixPath(parent).name, name)
            entries = remote.entries()
        listing = cache_key("listing", url, sorted(entries.items()))
        folder = open_or_build(self._folder / listing, partial(self._build, remote, inner.parts[0], entries))
        self._stand_ins.append(_StandIn(folder / inner.parts[0], remote))
        return folder / inner

    def _build(self, remote: RemoteFolder, root: str, entries: dict[str, RemoteEntry], folder: Path) -> None:
        for name, entry in entries.items():
            parts = PurePosixPath(root, name).parts
            if any(part.startswith(".") and part != ".." for part in parts[1:]):  # hidden, as in a folder
                continue
            if ".." in parts or "/".join(parts) != f"{root}/{name}".rstrip("/"):
                raise UserError(f"{remote.address(name)} cannot be a local file; rename it")
            path = folder.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                reason = getattr(error, "strerror", None) or error  # it is too long, or both a file and a folder
                raise UserError(f"{remote.address(name)} cannot be a local file ({reason}); rename it") from None
            if self._is_copy(path, not name):
                remote.fetch(name, entry.size, path)
            else:
                os.truncate(path, entry.size)
            time = int.from_bytes(hashlib.blake2b(entry.version.encode(), digest_size=6).digest(), "little")
            os.utime(path, ns=(time, time))  # by which a preparation that continues notices other contents

    def _is_copy(self, path: Path, single: bool) -> bool:
        is_read = bool(self._copied) and (single or file_kind(path.name) in self._copied or is_idx(path))
        return is_read or path.name == INDEX_FILE

    def name(self, text: str) -> str:
        """A path or message with addresses instead of the paths that stand for them."""
        for path, remote in self._stand_ins:
            text = text.replace(str(path), remote.url)
        return text

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """UserErrors name addresses."""
        try:
            yield
        except UserError as error:
            if not self._stand_ins:
                raise
            raise UserError(self.name(str(error))) from error

    @contextmanager
    def fetched(self, paths: Sequence[Path]) -> Iterator[list[Path]]:
        """Local files with the contents of these sources, until the end of the context. UserError for one that cannot
        be fetched.
        """
        if not self._stand_ins:
            yield list(paths)
            return
        with cache_errors(self._folder), TemporaryDirectory(dir=self._folder) as folder:
            with ThreadPoolExecutor(_REQUESTS) as pool:
                files = list(pool.map(partial(self._fetch, Path(folder)), range(len(paths)), paths))
            yield files

    @contextmanager
    def fetched_singly(self) -> Iterator[Callable[[Path], Path]]:
        """A function that returns a local file with the contents of a source; the file of its last call is removed.
        The first UserError of a call ends the context, because surveys leave out files that cannot be read.
        """
        errors: list[UserError] = []
        with ExitStack() as last:

            def local(path: Path) -> Path:
                last.close()
                try:
                    return last.enter_context(self.fetched([path]))[0]
                except UserError as error:
                    errors.append(error)
                    raise

            try:
                yield local
            finally:
                if errors:
                    raise errors[0]

    def _fetch(self, folder: Path, number: int, path: Path) -> Path:
        remote, name = self._find(path)
        if self._is_copy(path, not name):
            return path
        (folder / str(number)).mkdir()
        remote.fetch(name, path.stat().st_size, file := folder / str(number) / path.name)
        return file

    def read(self, path: Path, start: int, stop: int) -> Iterator[bytes]:
        """Bytes of a source, in blocks."""
        if self._stand_ins:
            remote, name = self._find(path)
            yield remote.read_span(name, start, stop, path.stat().st_size) if start < stop else b""
            return
        with open_file(path) as stream:
            stream.seek(start)
            while content := stream.read(min(_READ, stop - stream.tell())):
                yield content

    def _find(self, path: Path) -> tuple[RemoteFolder, str]:
        path = Path(os.path.normpath(path))  # a table may name a file as ../NAME
        for stand_in in self._stand_ins:
            if path.is_relative_to(stand_in.path):
                return stand_in.remote, path.relative_to(stand_in.path).as_posix().removeprefix(".")
        raise UserError(f"{path} is not at the address that names it; upload it there, or correct the table")


LOCAL = SourceFiles()
