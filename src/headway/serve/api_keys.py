"""API keys: those passed at startup, and those in files, which are read again when they change."""

from __future__ import annotations

import hmac
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headway.errors import UserError, logger
from headway.serve.session_keys import SessionKeys, key_digest

_LOG = logger(__name__)
_CHECK_SECONDS = 1.0  # seconds between checks of a file
_MAX_BYTES = 1 << 20  # bytes per file

_Version = tuple[int, int, int, int]


class ApiKey(NamedTuple):
    """A key that clients send. At most `max_concurrent` of its requests run at once; None sets no limit. With
    `may_train` it may start, change and delete runs.
    """

    secret: str
    max_concurrent: int | None = None
    may_train: bool = False


_SESSION = ApiKey("", may_train=True)  # a page of `headway open`


class KeyFile:
    """A file with one key per line: `KEY`, `KEY N`, `KEY train` or `KEY N train`; `#` starts a comment."""

    def __init__(self, path: Path) -> None:
        """UserError for a file that cannot be read or has no key."""
        self._path = path
        self._may_change = path.is_file()  # a pipe, which a shell may pass, is read once
        self.keys: list[ApiKey] = []
        self._version = self._read()

    def refresh(self) -> bool:
        """Read the file again if it has changed, and return whether its keys have. If the file is missing or broken,
        the keys stay the same and the log gets one warning.
        """
        if not self._may_change:
            return False
        try:
            status = os.stat(self._path)
            if not stat.S_ISREG(status.st_mode) or (version := _version(status)) == self._version:
                return False
        except OSError as error:
            version = (0, 0, 0, error.errno or 0)
            if version == self._version:
                return False
        before, self._version = self.keys, version
        try:
            self._version = self._read()
        except UserError as error:
            _LOG.warning("the API keys are unchanged: %s", error)
        return self.keys != before

    def _read(self) -> _Version:
        try:
            with self._path.open("rb") as file:
                version = _version(os.fstat(file.fileno()))
                raw = file.read(_MAX_BYTES + 1)
                text = raw.decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UserError(f"the key file {self._path} cannot be read ({reason}); pass a text file") from None
        if len(raw) > _MAX_BYTES:
            raise UserError(f"the key file {self._path} has more than {_MAX_BYTES:,} bytes; use a smaller one")
        self.keys = parse_keys(text.splitlines(), f"@{self._path}")
        return version


def _version(status: os.stat_result) -> _Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def parse_keys(lines: Sequence[str], source: str) -> list[ApiKey]:
    """The keys in these lines. UserError for a key that is not valid in a header, and if there is no key."""
    keys = []
    for line in lines:
        words = line.partition("#")[0].split()
        if not words:
            continue
        secret, may_train = words.pop(0), words[-1:] == ["train"]
        limits = words[: len(words) - may_train]
        is_valid = secret.isascii() and secret.isprintable() and len(limits) <= 1
        if not is_valid or not all(limit.isdecimal() and int(limit) > 0 for limit in limits):
            raise UserError(
                "a key line is not KEY, KEY N, KEY train or KEY N train; use printable ASCII without spaces, and N of "
                "at least 1"
            )
        keys.append(ApiKey(secret, int(limits[0]) if limits else None, may_train))
    if not keys:
        raise UserError(f"--api-key {source!r} contains no key; add one, or remove the option")
    return keys


class KeyRing:
    """The keys that are valid now. Each keeps its number while the server runs, in the order in which keys were first
    read. Numbers are never reused, so cached data of one key is never served to another.
    """

    def __init__(self, keys: Sequence[ApiKey], files: Sequence[KeyFile], sessions: SessionKeys | None = None) -> None:
        self._fixed, self._files, self._sessions = keys, files, sessions
        self._key_numbers: dict[bytes, int] = {}
        self._valid: list[tuple[bytes, int, ApiKey]] = []
        self._next = time.monotonic() + _CHECK_SECONDS
        self._update()

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._fixed or self._files) or self._sessions is not None

    def find(self, secret: str) -> tuple[ApiKey, int] | None:
        """A valid key and its number."""
        if self._files and time.monotonic() >= self._next:
            self._next = time.monotonic() + _CHECK_SECONDS
            changed = [file.refresh() for file in self._files]
            if any(changed):
                self._update()
        sent_digest, match = key_digest(secret), None
        for digest, number, key in self._valid:  # check all of them, so that timing reveals nothing
            if hmac.compare_digest(digest, sent_digest):
                match = key, number
        if self._sessions is not None and self._sessions.is_valid(sent_digest):
            match = _SESSION, 0  # of one user, whose sessions share cached prefixes
        return match

    def _update(self) -> None:
        keys = [*self._fixed, *(key for file in self._files for key in file.keys)]
        digests = [key_digest(key.secret) for key in keys]
        for digest in digests:
            self._key_numbers.setdefault(digest, len(self._key_numbers) + 1)
        self._valid = [(digest, self._key_numbers[digest], key) for digest, key in zip(digests, keys)]
