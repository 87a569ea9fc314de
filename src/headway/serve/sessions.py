"""Sessions of the page of `headway open`: one-time keys for its addresses, and keys for its requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint
from headway.serve.session_keys import SessionKeys

Key = Annotated[str, msgspec.Meta(max_length=200)]


class OneTimeKeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The secret of this server, which only the user who started it can read, and models or folders to add."""

    secret: Key
    folders: list[str] = []


class OneTimeKey(msgspec.Struct):
    """A key that can be exchanged once, within five minutes."""

    one_time_key: str


class SessionBody(msgspec.Struct, forbid_unknown_fields=True):
    one_time_key: Key


class SessionKey(msgspec.Struct):
    """The key for all requests of a page."""

    key: str


async def create_one_time_key(body: OneTimeKeyBody, context: Context) -> OneTimeKey:
    """StatusError 401 for a wrong secret."""
    key = _sessions(context).issue(body.secret, [Path(folder) for folder in body.folders])
    if key is None:
        raise StatusError(401, "this is not the secret of this server; run headway open", "secret", "secret")
    return OneTimeKey(key)


async def create_session(body: SessionBody, context: Context) -> SessionKey:
    """StatusError 401 for a one-time key that is not valid any more."""
    key = _sessions(context).exchange(body.one_time_key)
    if key is None:
        message = "this address was used before or is older than five minutes; run headway open again"
        raise StatusError(401, message, "one_time_key", "session_key")
    return SessionKey(key)


def _sessions(context: Context) -> SessionKeys:
    if context.settings.sessions is None:
        raise StatusError(404, "this server has no sessions; send an API key instead", code="no_sessions")
    return context.settings.sessions


ENDPOINTS = (
    Endpoint("POST", "/v1/session", create_session, "the key of a page for its one-time key", SessionBody, SessionKey),
    Endpoint(
        "POST", "/v1/session/one-time-key", create_one_time_key, "a one-time key for a page", OneTimeKeyBody, OneTimeKey
    ),
)
