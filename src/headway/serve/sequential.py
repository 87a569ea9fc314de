"""One request at a time, for models that the compiled engine cannot run step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple, cast

from headway.engine import Engine
from headway.errors import UserError
from headway.generate import Event, Session
from headway.generate.scheduler import FullError, Request, SampleOutput
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
        self._queue: deque[tuple[int, Iterator[SampleOutput | None]]] = deque()  # the first one runs

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

    def _outputs(self, ticket: int, request: Request, events: Iterator[Event]) -> Iterator[SampleOutput | None]:
        """The output of each step. If top tokens are requested, output is held back until another pass over the whole
        text has computed them.
        """
        scores: Sequence[TokenScore] = ()
        buffered: list[SampleOutput] = []
        model = self._session.model
        module = cast(Transformer, model.model if isinstance(model, Engine) else model)
        if request.prompt_top is not None:
            scores = score_prompt(module, request.prompt, request.prompt_top)
        for sample in range(0 if request.generates else request.n):
            yield SampleOutput(ticket, sample, None, "", 0.0, [], "length", scores=scores)
        started: set[int] = set()
        for event in events:
            sample, reason = event.sequence, None if event.completion is None else event.completion.finish_reason
            prompt_scores = () if sample in started else scores
            started.add(sample)
            output = SampleOutput(ticket, sample, event.id, event.text, event.logprob, [], reason, scores=prompt_scores)
            if request.top:
                buffered.append(output)
            yield None if request.top else output
        for sample in range(request.n if buffered else 0):
            sample_outputs = [output for output in buffered if output.sample == sample]
            token_ids = [*request.prompt, *(output.id for output in sample_outputs if output.id is not None)]
            token_scores = iter(score_prompt(module, token_ids, request.top)[len(request.prompt) - 1 :])
            yield from (
                output if output.id is None else output._replace(top=next(token_scores).top)
                for output in sample_outputs
            )

    def cancel(self, ticket: int) -> None:
        """Cancel a request."""
        self._queue = deque(entry for entry in self._queue if entry[0] != ticket)

    def step(self) -> list[SampleOutput]:
        """The next step of the first request; empty without requests."""
        if not self._queue:
            return []
        try:
            output = next(self._queue[0][1])
        except StopIteration:
            self._queue.popleft()
            return []
        return [] if output is None else [output]

    def state(self) -> SequentialState:
        """The number of running and waiting requests."""
        return SequentialState(min(len(self._queue), 1), max(len(self._queue) - 1, 0))
