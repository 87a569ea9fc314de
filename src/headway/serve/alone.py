"""One request after the other, for models that the compiled engine has no steps for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from headway.errors import UserError
from headway.generate import Event, Session
from headway.generate.scheduler import FullError, Request, Said


class AloneState(NamedTuple):
    """Requests that are under way, and that wait."""

    running: int
    waiting: int


class Alone:
    """Stands for a Scheduler where there can be none: a Session that writes one request at a time, the others waiting.
    One thread may use it.
    """

    def __init__(self, session: Session, waiting: int = 256) -> None:
        """At most `waiting` requests are in the queue."""
        self._session = session
        self._most = waiting
        self._numbers = count(1)
        self._queue: deque[tuple[int, Iterator[Event]]] = deque()  # the first is under way

    def submit(self, request: Request) -> int:
        """A number for the request. UserError for one that cannot be; FullError where too many wait."""
        if request.rule is not None or request.top:
            asked = "held to a form" if request.rule is not None else "told with the likeliest other tokens"
            raise UserError(
                f"answers of this model are not {asked}, as the compiled engine does not run it; leave that out"
            )
        if len(self._queue) > self._most:
            raise FullError(f"{self._most} requests wait already; ask again in a moment")
        events = self._session.events([request.prompt] * request.copies, request.sampling, request.limits)
        number = next(self._numbers)
        self._queue.append((number, events))
        return number

    def cancel(self, ticket: int) -> None:
        """Forget a request."""
        self._queue = deque(each for each in self._queue if each[0] != ticket)

    def step(self) -> list[Said]:
        """The next step of the first request. Nothing where there is none."""
        if not self._queue:
            return []
        ticket, events = self._queue[0]
        event = next(events, None)
        if event is None:
            self._queue.popleft()
            return []
        reason = None if event.completion is None else event.completion.finish_reason
        return [Said(ticket, event.sequence, event.id, event.text, event.logprob, [], reason)]

    def state(self) -> AloneState:
        """How many requests there are."""
        return AloneState(min(len(self._queue), 1), max(len(self._queue) - 1, 0))
