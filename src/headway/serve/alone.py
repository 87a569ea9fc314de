"""One request after the other, for models that the compiled engine has no steps for."""

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
        self._queue: deque[tuple[int, Iterator[Said | None]]] = deque()  # the first is under way

    def submit(self, request: Request) -> int:
        """A number for the request. UserError for one that cannot be; FullError where too many wait."""
        if request.rule is not None:
            raise UserError(
                "the compiled engine does not run this model, so its answers cannot be held to a form or to some "
                "tokens; leave that out"
            )
        if len(self._queue) > self._most:
            raise FullError(f"{self._most} requests wait already; ask again in a moment")
        session = self._session
        request.check(session.model)
        events: Iterator[Event] = iter(())
        if request.generates:
            events = session.events([request.prompt] * request.copies, request.sampling, request.limits)
        number = next(self._numbers)
        self._queue.append((number, self._said(number, request, events)))
        return number

    def _said(self, number: int, request: Request, events: Iterator[Event]) -> Iterator[Said | None]:
        """What each step says; nothing as long as the likeliest tokens are wanted, which one more pass over the whole
        text finds.
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
        """Forget a request."""
        self._queue = deque(each for each in self._queue if each[0] != ticket)

    def step(self) -> list[Said]:
        """The next step of the first request. Nothing where there is none."""
        if not self._queue:
            return []
        try:
            said = next(self._queue[0][1])
        except StopIteration:
            self._queue.popleft()
            return []
        return [] if said is None else [said]

    def state(self) -> AloneState:
        """How many requests there are."""
        return AloneState(min(len(self._queue), 1), max(len(self._queue) - 1, 0))
