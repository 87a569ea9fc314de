"""Files in object storage and on the web, through the optional package fsspec: s3://, gs://, https:// and hf://."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from headway.errors import UserError, logger
from headway.io.files import open_file

T = TypeVar("T")
# A path of a URL has lost one of its two slashes.
_URL = re.compile(r"(s3|gs|https?|hf):/{1,2}([^/].*)", re.DOTALL)
_ATTEMPTS, _FIRST_WAIT = 6, 0.5  # of one request; seconds, doubled after each
_MAX_ANSWER = 1 << 26  # bytes of one request for a file; shards have no more
_REQUESTS = 8  # at once, for sizes
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "Last-Modified", "mtime")
WRITABLE = ("s3", "gs")
_NO_ACCESS = re.compile("redentials|^Forbidden")  # in errors without a type or status
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}


def remote_url(path: Path | str) -> str | None:
    """The URL that a path stands for; None for a local path."""
    match = _URL.fullmatch(str(path))
    return None if match is None else f"{match[1]}://{match[2]}"


class MissingRemoteFileError(UserError):
    """There is no file at an address."""


class UnavailableError(UserError):
    """A server does not answer, or is too busy to, so the same request may succeed later."""


class RemoteEntry(NamedTuple):
    """The bytes of a file, and a string that changes with its content, or is empty if the server states none."""

    size: int
    version: str


class RemoteFolder:
    """A folder in object storage or on the web. Failed requests are repeated, because servers answer with errors under
    load and cut answers short; a missing file and missing rights are a UserError at once.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = protocol = url.partition(":")[0]
        try:
            logger("gcsfs").setLevel("CRITICAL")  # it logs tracebacks of the errors that it raises
            fsspec = importlib.import_module("fsspec")
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url} needs the package {_PACKAGES[protocol]}; run pip install 'headway[remote]'"
            ) from error

    def address(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}" if name else self.url

    def read(self, name: str, stop: int | None = None) -> bytes:
        """A file's bytes, or the first `stop` of them."""

        def load(path: str) -> bytes:
            if stop is not None:
                self._files.invalidate_cache()
                size = self._files.info(path)["size"]
                if size is not None and size > stop:
                    return self._files.cat_file(path, 0, stop)
            return self._files.cat_file(path)

        return self._request(name, load)

    def read_span(self, name: str, start: int, stop: int, size: int) -> bytes:
        """The bytes from `start` to `stop` of a file of `size` bytes."""

        def load(path: str) -> bytes:
            is_part = stop - start < size
            content = self._files.cat_file(path, start, stop) if is_part else self._files.cat_file(path)
            if is_part and len(content) == size:
                raise UserError(f"{self.address(name)} is on a server that sends whole files only; download it first")
            if len(content) != stop - start:
                raise OSError(f"{len(content):,} of {stop - start:,} bytes arrived")
            return content

        return self._request(name, load)

    def fetch(self, name: str, size: int, path: Path) -> None:
        """Write a file of `size` bytes to a local path."""
        with open(path, "wb") as file:
            for start in range(0, max(1, size), _MAX_ANSWER):
                file.write(self.read_span(name, start, min(size, start + _MAX_ANSWER), size))

    def write(self, name: str, path: Path) -> None:
        """Write a local file, which appears under its name only when it is complete."""
        with open_file(path) as file:
            content = file.read()
        self._request(name, lambda remote: self._files.pipe_file(remote, content))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        try:
            return self._info(name).get("type") == "file"
        except MissingRemoteFileError:
            return False

    def entries(self) -> dict[str, RemoteEntry]:
        """Each file below this folder by its path, sorted; a single file has an empty path. UserError if there are
        none, and if a server does not state their sizes.
        """
        is_web = self.protocol in ("http", "https")

        def find(path: str) -> dict[str, dict[str, Any]]:
            self._files.invalidate_cache()
            # On the web, a folder that cannot be listed would otherwise be left out.
            return self._files.find(path, detail=True, **({"on_error": "raise"} if is_web else {}))

        found = self._request("", find)
        if not found:
            try:
                info = self._info("")  # raises the error that led to an empty list
            except MissingRemoteFileError:
                info = {}
            if info.get("type") != "file":
                raise UserError(f"there is no file or folder {self.url}; check the address")
            found = {self._root: info}
        names = {path: path[len(self._root) :].lstrip("/") for path in sorted(found)}
        if is_web:
            names = {path: unquote(name) for path, name in names.items()}
        missing = [path for path in names if found[path].get("size") is None]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found |= zip(missing, pool.map(lambda path: self._info(names[path]), missing))
        entries = {}
        for path, name in names.items():
            size = found[path].get("size")
            if size is None:
                raise UserError(f"the server does not state the size of {self.address(name)}; download it first")
            version = next((str(found[path][key]) for key in _VERSIONS if found[path].get(key)), "")
            entries[name] = RemoteEntry(int(size), version)
        return dict(sorted(entries.items()))

    def _info(self, name: str) -> dict[str, Any]:
        def look(path: str) -> dict[str, Any]:
            self._files.invalidate_cache()
            return self._files.info(path)

        return self._request(name, look)

    def _request(self, name: str, request: Callable[[str], T]) -> T:
        remote_name = quote(name) if self.protocol in ("http", "https") else name
        path, address = f"{self._root}/{remote_name}" if name else self._root, self.address(name)
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return request(path)
            except UserError:
                raise
            except Exception as error:
                cause = error
                if isinstance(error, FileNotFoundError):
                    cause = error.__cause__  # clients of the web report any failure as a missing file
                    is_fault = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
                    if _status(cause) == 404 or not (is_fault or _status(cause)):
                        raise MissingRemoteFileError(f"there is no file {address}; check the address") from error
                reason = " ".join(str(cause).split())[:200] or type(cause).__name__
                if isinstance(cause, PermissionError) or _status(cause) in (401, 403) or _NO_ACCESS.search(reason):
                    raise UserError(
                        f"{address} cannot be accessed ({reason}); check the credentials and their rights"
                    ) from error
        raise UserError(
            f"{address} could not be transferred in {_ATTEMPTS} attempts ({reason}); check the connection and run the "
            "same command again"
        )


def _status(error: Any) -> int | None:
    """The HTTP status that an error of a client states."""
    response = getattr(error, "response", None)
    statuses = getattr(error, "status", None), getattr(error, "code", None), getattr(response, "status_code", None)
    return next((status for status in statuses if isinstance(status, int)), None)
