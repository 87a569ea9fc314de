"""Tickets: addresses that open once and for a minute, for documents that a browser opens without a key."""

from __future__ import annotations

import secrets
import time

_SECONDS = 60.0
_MAX_TICKETS = 100  # of an owner, that nobody has used yet


class Tickets:
    """The unused tickets of a server, each for one path and the owner of the key that asked for it."""

    def __init__(self) -> None:
        self._tickets: dict[str, tuple[str, str, float]] = {}

    def issue(self, path: str, owner: str) -> str:
        """A new ticket for a path."""
        now = time.monotonic()
        valid = {ticket: entry for ticket, entry in self._tickets.items() if entry[2] > now}
        own = [ticket for ticket, entry in valid.items() if entry[1] == owner]
        for oldest in own[: -_MAX_TICKETS + 1]:
            del valid[oldest]
        self._tickets = valid
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = path, owner, now + _SECONDS
        return ticket

    def redeem(self, path: str, ticket: str) -> str | None:
        """The owner of a ticket for this path, which is used up; None if it is not valid."""
        if (entry := self._tickets.get(ticket)) is None or entry[0] != path:
            return None
        del self._tickets[ticket]
        return entry[1] if entry[2] > time.monotonic() else None
