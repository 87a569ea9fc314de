"""Keys of the page that `headway open` shows: a one-time key in its address, exchanged for the key of a session."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from headway.errors import UserError, logger
from headway.io.durable import read_json, write_json

ONE_TIME_SECONDS = 300  # for which a one-time key is valid
_MAX_KEYS = 1000  # of each kind; the oldest make room
_LOG = logger(__name__)


class SessionKeys:
    """The keys of one server's page, and the folders that it serves. A file, which only this user can read, has the
    digests of the sessions and the folders, so both outlive the process that serves.
    """

    def __init__(self, path: Path, secret: str, folders: Sequence[Path]) -> None:
        """Whoever knows the `secret` gets one-time keys. UserError for a damaged file."""
        self._path, self._secret = path, key_digest(secret)
        self._one_time_keys: dict[bytes, float] = {}  # when each ends, by the monotonic clock
        self._exchanged: dict[bytes, tuple[bytes, float]] = {}  # the session of each that was used, and its end
        stored = read_json(path) if path.exists() else {}
        self._sessions = [bytes.fromhex(text) for text in stored.get("sessions", [])]
        self.folders = [*dict.fromkeys([*folders, *map(Path, stored.get("folders", []))])]

    def issue(self, secret: str, folders: Sequence[Path] = ()) -> str | None:
        """A new one-time key, after adding folders; None for a wrong secret."""
        if not hmac.compare_digest(key_digest(secret), self._secret):
            return None
        new = [folder for folder in dict.fromkeys(folders) if folder not in self.folders]
        if new:
            self.folders += new
            self._store()
        key = secrets.token_urlsafe(24)
        self._one_time_keys[key_digest(key)] = time.monotonic() + ONE_TIME_SECONDS
        if len(self._one_time_keys) > _MAX_KEYS:
            self._one_time_keys.pop(next(iter(self._one_time_keys)))
        return key

    def exchange(self, one_time_key: str) -> str | None:
        """The key of a new session; None for a one-time key that is unknown, too old, or was used. If one is used twice
        while it is valid, somebody else may have read it, so the session that it started ends.
        """
        sent, now = key_digest(one_time_key), time.monotonic()
        end = self._one_time_keys.pop(sent, 0.0)
        if end < now:
            session, end = self._exchanged.pop(sent, (b"", 0.0))
            if end > now and session in self._sessions:
                self._sessions.remove(session)
                self._store()
            return None
        key = secrets.token_urlsafe(32)
        self._exchanged = {used: (session, e) for used, (session, e) in self._exchanged.items() if e > now}
        self._exchanged[sent] = key_digest(key), end
        self._sessions = [*self._sessions, key_digest(key)][-_MAX_KEYS:]
        self._store()
        return key

    def is_valid(self, sent: bytes) -> bool:
        """Whether this is the digest of a session's key."""
        return sent in self._sessions

    def _store(self) -> None:
        state = {"sessions": [session.hex() for session in self._sessions], "folders": [*map(str, self.folders)]}
        try:
            write_json(self._path, state, private=True)
        except UserError as error:  # a full disk; the keys are valid while this process serves
            _LOG.warning("sessions are not stored: %s", error)


def key_digest(secret: str) -> bytes:
    """The SHA-256 digest of a key, which is all that is stored of it."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
