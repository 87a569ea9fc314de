"""One request at a time, for models that the compiled engine cannot run step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple, cast

from headway.engine import Engine
from headway.errors import UserError
from headway.generate import Event, Session
from headway.generate.scheduler import FullError, Request
from headway.generate.score import TokenScore, score_prompt
from headway.nn.models import Transformer


class SequentialState(NamedTuple):
    """The number of running and waiting requests."""

    running: int
    waiting: int


class SequentialScheduler:
    """A replacement for Scheduler that runs one request at a time in a Session while the others wait. Only one thread
    may use it.
    """

    def __init__(self, session: Session, max_waiting: int = 256) -> None:
        """At most `max_waiting` requests are in the queue."""
        self._session = session
        self._max_waiting = max_waiting
        self._tickets = count(1)
        self._queue: deque[tuple[int, Iterator[Event | None]]] = deque()  # the first one runs

    def submit(self, request: Request) -> int:
        """A ticket for the request. UserError for an unsupported one; FullError if too many are waiting."""
        if request.rule is not None:
            raise UserError(
                "response formats and allowed tokens are not supported, because the compiled engine does not run this "
                "model; remove them"
            )
        if len(self._queue) > self._max_waiting:
            raise FullError(f"{self._max_waiting} requests are waiting; try again in a moment")
        session = self._session
        request.check(session.model)
        events: Iterator[Event] = iter(())
        if request.generates:
            events = session.events([request.prompt] * request.n, request.sampling, request.limits)
        ticket = next(self._tickets)
        self._queue.append((ticket, self._outputs(ticket, request, events)))
        return ticket

    def _outputs(self, ticket: int, request: Request, events: Iterator[Event]) -> Iterator[Event | None]:
        """The event of each step. If top tokens are requested, events are held back until another pass over the whole
        text has computed them.
        """
        scores: Sequence[TokenScore] = ()
        buffered: list[Event] = []
        model = self._session.model
        module = cast(Transformer, model.model if isinstance(model, Engine) else model)
        if request.prompt_top is not None:
            scores = score_prompt(module, request.prompt, request.prompt_top)
        for sample in range(0 if request.generates else request.n):
            yield Event(sample, ticket=ticket, reason="length", scores=scores)
        started: set[int] = set()
        for event in events:
            event.ticket, event.scores = ticket, () if event.sequence in started else scores
            started.add(event.sequence)
            if request.top:
                buffered.append(event)
            yield None if request.top else event
        for sample in range(request.n if buffered else 0):
            sample_events = [event for event in buffered if event.sequence == sample]
            token_ids = [*request.prompt, *(event.id for event in sample_events if event.id is not None)]
            token_scores = iter(score_prompt(module, token_ids, request.top)[len(request.prompt) - 1 :])
            for event in sample_events:
                event.top = [] if event.id is None else next(token_scores).top
                yield event

    def cancel(self, ticket: int) -> None:
        """Cancel a request."""
        self._queue = deque(entry for entry in self._queue if entry[0] != ticket)

    def step(self) -> list[Event]:
        """The next step of the first request; empty without requests."""
        if not self._queue:
            return []
        try:
            event = next(self._queue[0][1])
        except StopIteration:
            self._queue.popleft()
            return []
        return [] if event is None else [event]

    def state(self) -> SequentialState:
        """The number of running and waiting requests."""
        return SequentialState(min(len(self._queue), 1), max(len(self._queue) - 1, 0))
