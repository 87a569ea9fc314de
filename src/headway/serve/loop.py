"""The engine loop: a separate thread takes steps while there is work and sleeps otherwise.

The event loop never waits for it. Requests go into a queue that the thread reads before its next step; all output of a
step wakes the event loop once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from headway.app.model import Model
from headway.engine import Engine
from headway.errors import logger
from headway.generate import Limits
from headway.generate.scheduler import Request, Said, Scheduler
from headway.serve.alone import Alone
from headway.serve.errors import StatusError
from headway.serve.metrics import BETWEEN, FIRST, WRITTEN

_LOG = logger(__name__)
_UNREAD = 8192  # maximum unread tokens per client
_LAST_STEP = 5.0  # seconds that a step may still take during shutdown


class Steps(Protocol):
    """What a loop drives; see `Scheduler` for the methods. Only the loop's thread calls them."""

    def submit(self, request: Request) -> int: ...
    def cancel(self, ticket: int) -> None: ...
    def step(self) -> list[Said]: ...
    def state(self) -> Any: ...


class Turn(NamedTuple):
    """The output of one step for one of the requested sequences."""

    place: int  # of the sequence; those of the requests follow each other, each with all its samples
    said: Said


News = Turn | Exception


class Writing:
    """The output of requests that belong together. `async with` starts them, and cancels them when left early."""

    def __init__(self, loop: EngineLoop, requests: Sequence[Request]) -> None:
        self.requests = requests
        self._loop = loop
        self._left = sum(request.copies for request in requests)  # unfinished sequences
        self._over = False
        self._news: deque[News] = deque()
        self._awake = asyncio.Event()
        self._asked = time.monotonic()
        self._last: float | None = None  # time of the last output

    async def __aenter__(self) -> Writing:
        self._loop.ask(self)
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._end()

    async def turns(self) -> AsyncGenerator[Turn, None]:
        """All output until the last sequence is finished. Raises errors of the requests."""
        while self._left:
            while not self._news:
                self._awake.clear()
                await self._awake.wait()
            turn = self._news.popleft()
            if isinstance(turn, Exception):
                self._end()
                raise turn
            if turn.said.reason is not None:
                self._left -= 1
            yield turn
        self._over = True

    def hear(self, news: News, at: float) -> None:
        """On the event loop: an event that happened at this time."""
        if self._over:
            return
        if isinstance(news, Turn):
            if self._last is None:
                self._loop.first.observe(at - self._asked)
            elif at > self._last:  # samples of the same step are one wait for the client
                self._loop.between.observe(at - self._last)
            self._last = at
        if len(self._news) >= _UNREAD:
            self._news.clear()
            news = StatusError(408, f"{_UNREAD:,} tokens of the answer are unread; read the stream faster")
            self._loop.take_back(self)
        self._news.append(news)
        self._awake.set()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._loop.take_back(self)


@dataclass
class _Ticket:
    """A running request."""

    writing: Writing
    place: int  # of its first sample
    left: int  # unfinished samples
    begun: bool = False


class EngineLoop:
    """Runs one model's `steps` in a separate thread."""

    def __init__(self, steps: Steps, name: str) -> None:
        self.steps = steps
        self.name = name
        self.first, self.between, self._written = FIRST.labels(name), BETWEEN.labels(name), WRITTEN.labels(name)
        self._wake = threading.Condition()
        self._asked: deque[Writing] = deque()
        self._back: deque[Writing] = deque()
        self._tickets: dict[int, _Ticket] = {}
        self._until: float | None = None  # deadline of all requests, once the loop shuts down
        self._moved = time.monotonic()
        self._home: asyncio.AbstractEventLoop | None = None
        context = copy_context()  # has, for example, whether kernels are deterministic
        self._thread = threading.Thread(target=context.run, args=(self._run,), name=f"engine {name}", daemon=True)
        self._thread.start()

    def write(self, requests: Sequence[Request]) -> Writing:
        """The output of these requests, which start when it is entered."""
        return Writing(self, requests)

    def ask(self, writing: Writing) -> None:
        """On the event loop: start these requests. StatusError 503 if the loop is shutting down."""
        self._home = asyncio.get_running_loop()
        with self._wake:
            if self._until is not None:
                raise ending()
            if not self.working:
                self._moved = time.monotonic()
            self._asked.append(writing)
            self._wake.notify()

    def take_back(self, writing: Writing) -> None:
        """On the event loop: cancel these requests before the next step."""
        with self._wake:
            self._back.append(writing)
            self._wake.notify()

    @property
    def working(self) -> bool:
        """Whether there are any requests."""
        return bool(self._tickets or self._asked)

    @property
    def still(self) -> float:
        """Seconds since the last step ended, or 0 without work."""
        return time.monotonic() - self._moved if self.working else 0.0

    async def close(self, seconds: float) -> None:
        """Refuse requests without output, let the others continue for `seconds`, and stop the thread."""
        with self._wake:
            if self._until is None:
                self._until = time.monotonic() + seconds
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, seconds + _LAST_STEP)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._asked or self._back or self._tickets or self._until is not None):
                    self._wake.wait()
                asked, back = list(self._asked), list(self._back)
                self._back.clear()
            news = [each for writing in asked for each in self._submit(writing)]
            with self._wake:  # only now, so that `working` never misses them
                for _ in asked:
                    self._asked.popleft()
            for writing in back:
                self._forget(writing)
            if self._until is not None:
                news += self._end_some(self._until)
            if self._tickets or back:  # a step frees cancelled requests, even if nothing else runs
                news += self._step()
            self._moved = time.monotonic()
            self._tell(news)
            if self._until is not None and not self.working:
                return

    def _submit(self, writing: Writing) -> list[tuple[Writing, News]]:
        place = 0
        try:
            for request in writing.requests:
                ticket = self.steps.submit(request)
                self._tickets[ticket] = _Ticket(writing, place, request.copies)
                place += request.copies
        except Exception as error:
            self._forget(writing)
            return [(writing, error)]
        return []

    def _forget(self, writing: Writing) -> None:
        for number in [number for number, ticket in self._tickets.items() if ticket.writing is writing]:
            del self._tickets[number]
            try:
                self.steps.cancel(number)
            except Exception:
                _LOG.exception("a request to %s cannot be cancelled", self.name)

    def _end_some(self, until: float) -> list[tuple[Writing, News]]:
        """Stop requests without output; after the deadline, all."""
        over = time.monotonic() >= until
        begun = {id(ticket.writing) for ticket in self._tickets.values() if ticket.begun}
        all_under_way = {id(ticket.writing): ticket.writing for ticket in self._tickets.values()}
        ended = [writing for key, writing in all_under_way.items() if over or key not in begun]
        for writing in ended:
            self._forget(writing)
        return [(writing, ending()) for writing in ended]

    def _step(self) -> list[tuple[Writing, News]]:
        try:
            steps = self.steps.step()
        except Exception as error:  # ends the running requests, but not the server
            writings = list({id(ticket.writing): ticket.writing for ticket in self._tickets.values()}.values())
            for writing in writings:
                self._forget(writing)
            return [(writing, error) for writing in writings]
        news: list[tuple[Writing, News]] = []
        for said in steps:
            ticket = self._tickets.get(said.ticket)
            if ticket is None:  # it was cancelled
                continue
            if said.error is not None:
                self._forget(ticket.writing)
                news.append((ticket.writing, said.error))
                continue
            ticket.begun = True
            news.append((ticket.writing, Turn(ticket.place + said.copy, said)))
            if said.reason is not None:
                ticket.left -= 1
                if ticket.left == 0:
                    del self._tickets[said.ticket]
        return news

    def _tell(self, news: list[tuple[Writing, News]]) -> None:
        if not news or self._home is None:
            return
        try:
            self._home.call_soon_threadsafe(self._hear, news, time.monotonic())
        except RuntimeError:  # the event loop has stopped, so nobody listens
            _LOG.debug("the last output of %s is dropped", self.name)

    def _hear(self, news: list[tuple[Writing, News]], at: float) -> None:
        self._written.inc(sum(isinstance(each, Turn) and each.said.id is not None for _, each in news))
        for writing, each in news:
            writing.hear(each, at)


def ending() -> StatusError:
    """The error for requests to a server that is shutting down."""
    return StatusError(503, "the server is shutting down; try again in a minute", code="ending", retry_after=60)


def open_loop(
    model: Model, name: str, slots: int = 64, waiting: int = 256, cache_memory: int | None = None
) -> EngineLoop | None:
    """An engine loop that generates a model's text, or None if the model does not generate. It runs a Scheduler of at
    most `slots` sequences and `cache_memory` bytes of KV cache if the compiled engine supports the model and there is
    no draft, otherwise one request at a time. At most `max_waiting` requests are in the queue.
    """
    if "generate" not in model.verbs:
        return None
    session = model.open_session()
    if isinstance(session.model, Engine) and model.draft is None:
        steps = Scheduler(session.model, session.codec, slots, waiting, cache_memory)
        steps.submit(Request([0], limits=Limits(1)))  # warm-up: compile before the first request
        while steps.step():
            pass
        return EngineLoop(steps, name)
    return EngineLoop(Alone(session, waiting), name)
