"""The engine's loop: a thread of its own takes steps while there is work and sleeps otherwise.

The event loop never waits for it. What is asked goes into a list that the thread reads before its next step; all that a
step says comes back with one wake-up of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from headway.app.model import Model
from headway.engine import Engine
from headway.generate.scheduler import Request, Said, Scheduler
from headway.serve.alone import Alone
from headway.serve.errors import StatusError
from headway.serve.metrics import BETWEEN, FIRST, WRITTEN

_LOG = logging.getLogger(__name__)
_UNREAD = 8192  # symbols that may wait for one client


class Steps(Protocol):
    """What a loop drives; `Scheduler` says what the methods do. Only the loop's thread calls them."""

    def submit(self, request: Request) -> int: ...
    def cancel(self, ticket: int) -> None: ...
    def step(self) -> list[Said]: ...


class Turn(NamedTuple):
    """What one step said of one of the sequences that were asked for."""

    place: int  # of the sequence: its request's, times the copies, and its copy
    said: Said


class Writing:
    """What comes of requests that belong together. `async with` asks for it, and takes it back when left early."""

    def __init__(self, loop: EngineLoop, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.asked = self.last = time.monotonic()
        self.left = sum(request.copies for request in requests)  # sequences that go on
        self.over = False  # nothing more is wanted of it
        self.tickets: dict[int, int] = {}  # the loop's thread alone: the place of each ticket's first copy
        self._loop = loop
        self._news: deque[Turn | BaseException] = deque()
        self._awake = asyncio.Event()

    async def __aenter__(self) -> Writing:
        self._loop.ask(self)
        return self

    async def __aexit__(self, *raised: object) -> None:
        if not self.over:
            self.over = True
            self._loop.take_back(self)

    async def turns(self) -> AsyncIterator[Turn]:
        """All that is said, until the last sequence has ended. Raises what went wrong."""
        while self._news or self.left:
            while not self._news:
                self._awake.clear()
                await self._awake.wait()
            turn = self._news.popleft()
            if isinstance(turn, BaseException):
                raise turn
            if turn.said.reason is not None:
                self.left -= 1
            yield turn
        self.over = True

    def hear(self, news: Turn | BaseException) -> None:
        """On the event loop: something has come."""
        if self.over:
            return
        if len(self._news) >= _UNREAD:
            self.over = True
            self._loop.take_back(self)
            self._news.clear()
            news = StatusError(408, f"{_UNREAD:,} tokens of the answer were not read; read it as it comes")
        self._news.append(news)
        self._awake.set()


class EngineLoop:
    """Runs one model's `steps` in a thread of its own."""

    def __init__(self, steps: Steps, name: str) -> None:
        self.steps = steps
        self.name = name
        self.alone = isinstance(steps, Alone)
        self._wake = threading.Condition()
        self._asked: deque[Writing] = deque()
        self._left: deque[Writing] = deque()
        self._tickets: dict[int, Writing] = {}
        self._until: float | None = None  # when all must have ended, once the loop is to end
        self._moved = time.monotonic()
        self._home: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    def write(self, requests: Sequence[Request]) -> Writing:
        """What these requests are answered with, once it is entered."""
        return Writing(self, requests)

    def ask(self, writing: Writing) -> None:
        """On the event loop: have this written. StatusError 503 where the loop is to end."""
        self._home = asyncio.get_running_loop()
        with self._wake:
            if self._until is not None:
                raise _ending()
            if not self._tickets and not self._asked:
                self._moved = time.monotonic()
            self._asked.append(writing)
            self._wake.notify()

    def take_back(self, writing: Writing) -> None:
        """On the event loop: forget this before the next step."""
        with self._wake:
            self._left.append(writing)
            self._wake.notify()

    @property
    def working(self) -> bool:
        """Whether anything is asked for."""
        return bool(self._tickets or self._asked)

    @property
    def still(self) -> float:
        """Seconds since the last step ended, while there is work; else 0."""
        return time.monotonic() - self._moved if self.working else 0.0

    async def close(self, seconds: float) -> None:
        """Refuse what has said nothing yet, let the rest go on for `seconds`, and end the thread."""
        with self._wake:
            self._until = time.monotonic() + seconds
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, seconds + 5)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._asked or self._left or self._tickets or self._until is not None):
                    self._wake.wait()
                asked, left = list(self._asked), list(self._left)
                self._left.clear()
            news: list[tuple[Writing, Turn | BaseException]] = []
            for writing in asked:
                news += self._submit(writing)
            for writing in left:
                self._forget(writing)
            with self._wake:  # only now, so that `working` never misses what is between the two
                for _ in asked:
                    self._asked.popleft()
            if self._until is not None:
                news += self._end_some(self._until)
            if self._tickets:
                news += self._step()
            self._moved = time.monotonic()
            self._tell(news)
            if self._until is not None and not self._tickets:
                return

    def _submit(self, writing: Writing) -> list[tuple[Writing, BaseException]]:
        place = 0
        try:
            for request in writing.requests:
                ticket = self.steps.submit(request)
                writing.tickets[ticket], self._tickets[ticket] = place, writing
                place += request.copies
        except Exception as error:
            self._forget(writing)
            return [(writing, error)]
        return []

    def _forget(self, writing: Writing) -> None:
        for ticket in writing.tickets:
            if self._tickets.pop(ticket, None) is not None:
                try:
                    self.steps.cancel(ticket)
                except Exception:
                    _LOG.exception("request %d of %s cannot be taken back", ticket, self.name)

    def _step(self) -> list[tuple[Writing, Turn | BaseException]]:
        try:
            steps = self.steps.step()
        except Exception as error:  # ends all that are under way, and not the server
            writings = list(dict.fromkeys(self._tickets.values()))
            for writing in writings:
                self._forget(writing)
            return [(writing, error) for writing in writings]
        news: list[tuple[Writing, Turn | BaseException]] = []
        for said in steps:
            writing = self._tickets.get(said.ticket)
            if writing is None:  # taken back meanwhile
                continue
            news.append((writing, Turn(writing.tickets[said.ticket] + said.copy, said)))
            if said.reason is not None:
                writing.ended += 1
                if writing.ended == writing.wanted:
                    for ticket in writing.tickets:
                        del self._tickets[ticket]
        return news
