"""One request at a time, for models that the compiled engine cannot run step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple, cast

from headway.engine import Engine
from headway.errors import UserError
from headway.generate import Event, Session
from headway.generate.scheduler import FullError, Request, Said
from headway.generate.score import TokenScore, score_prompt
from headway.nn.models import Transformer


class AloneState(NamedTuple):
    """The number of running and of waiting requests."""

    running: int
    waiting: int


class Alone:
    """A replacement for Scheduler that runs one request at a time in a Session while the others wait. Only one thread
    may use it.
    """

    def __init__(self, session: Session, waiting: int = 256) -> None:
        """At most `max_waiting` requests are in the queue."""
        self._session = session
        self._most = waiting
        self._numbers = count(1)
        self._queue: deque[tuple[int, Iterator[Said | None]]] = deque()  # the first one runs

    def submit(self, request: Request) -> int:
        """A ticket for the request. UserError for an unsupported one; FullError if too many wait."""
        if request.rule is not None:
            raise UserError(
                "the compiled engine does not run this model, so it supports no response formats or allowed tokens; "
                "leave them out"
            )
        if len(self._queue) > self._most:
            raise FullError(f"{self._most} requests are waiting; try again in a moment")
        session = self._session
        request.check(session.model)
        events: Iterator[Event] = iter(())
        if request.generates:
            events = session.events([request.prompt] * request.copies, request.sampling, request.limits)
        number = next(self._numbers)
        self._queue.append((number, self._said(number, request, events)))
        return number

    def _said(self, number: int, request: Request, events: Iterator[Event]) -> Iterator[Said | None]:
        """The output of each step. If top tokens are requested, output is held back until another pass over the whole
        text has computed them.
        """
        scores: Sequence[TokenScore] = ()
        held: list[Said] = []
        model = self._session.model
        module = cast(Transformer, model.model if isinstance(model, Engine) else model)
        if request.prompt_top is not None:
            scores = score_prompt(module, request.prompt, request.prompt_top)
        for copy in range(0 if request.generates else request.copies):
            yield Said(number, copy, None, "", 0.0, [], "length", scores=scores)
        begun: set[int] = set()
        for event in events:
            copy, reason = event.sequence, None if event.completion is None else event.completion.finish_reason
            first = () if copy in begun else scores
            begun.add(copy)
            said = Said(number, copy, event.id, event.text, event.logprob, [], reason, scores=first)
            if request.top:
                held.append(said)
            yield None if request.top else said
        for copy in range(request.copies if held else 0):
            own = [said for said in held if said.copy == copy]
            text = [*request.prompt, *(said.id for said in own if said.id is not None)]
            found = iter(score_prompt(module, text, request.top)[len(request.prompt) - 1 :])
            yield from (said if said.id is None else said._replace(top=next(found).top) for said in own)

    def cancel(self, ticket: int) -> None:
        """Cancel a request."""
        self._queue = deque(each for each in self._queue if each[0] != ticket)

    def step(self) -> list[Said]:
        """The next step of the first request; empty without requests."""
        if not self._queue:
            return []
        try:
            said = next(self._queue[0][1])
        except StopIteration:
            self._queue.popleft()
            return []
        return [] if said is None else [said]

    def state(self) -> AloneState:
        """The number of running and of waiting requests."""
        return AloneState(min(len(self._queue), 1), max(len(self._queue) - 1, 0))
