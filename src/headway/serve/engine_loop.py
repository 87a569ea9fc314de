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
from typing import Any, Protocol

from headway.app.model import Model
from headway.errors import logger
from headway.generate import Event, Limits
from headway.generate.scheduler import Request, Scheduler
from headway.serve.http_errors import StatusError
from headway.serve.metrics import BETWEEN_TOKENS_SECONDS, FIRST_TOKEN_SECONDS, GENERATED_TOKENS

_LOG = logger(__name__)
_MAX_UNREAD = 8192  # unread tokens per client
_LAST_STEP_SECONDS = 5.0  # seconds that a step may still take during shutdown


class Steps(Protocol):
    """The object that a loop drives; see `Scheduler` for the methods. Only the loop's thread calls them."""

    def submit(self, request: Request) -> int: ...
    def cancel(self, ticket: int) -> None: ...
    def step(self) -> list[Event]: ...
    def state(self) -> Any: ...


StreamEvent = Event | Exception


class GenerationStream:
    """The events of requests that belong together. `async with` starts them, and cancels them when left early.

    Sequences are numbered consecutively over the requests, each with all its samples.
    """

    def __init__(self, loop: EngineLoop, requests: Sequence[Request]) -> None:
        self.requests = requests
        self._loop = loop
        self._unfinished = sum(request.n for request in requests)  # unfinished sequences
        self._closed = False
        self._events: deque[StreamEvent] = deque()
        self._awake = asyncio.Event()
        self._start_time = time.monotonic()
        self._last_time: float | None = None  # time of the last output

    async def __aenter__(self) -> GenerationStream:
        self._loop.submit(self)
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._close()

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events until the last sequence is finished. Raises errors of the requests."""
        while self._unfinished:
            while not self._events:
                self._awake.clear()
                await self._awake.wait()
            event = self._events.popleft()
            if isinstance(event, Exception):
                self._close()
                raise event
            if event.reason is not None:
                self._unfinished -= 1
            yield event
        self._closed = True

    def on_event(self, event: StreamEvent, timestamp: float) -> None:
        """On the event loop: handle an event that happened at this time."""
        if self._closed:
            return
        if isinstance(event, Event):
            if self._last_time is None:
                self._loop.first.observe(timestamp - self._start_time)
            elif timestamp > self._last_time:  # samples from the same step are one wait for the client
                self._loop.between.observe(timestamp - self._last_time)
            self._last_time = timestamp
        if len(self._events) >= _MAX_UNREAD:
            self._events.clear()
            event = StatusError(408, f"{_MAX_UNREAD:,} tokens of the answer are unread; read the stream faster")
            self._loop.cancel(self)
        self._events.append(event)
        self._awake.set()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.cancel(self)


@dataclass
class _RunningRequest:
    """A running request."""

    stream: GenerationStream
    first_index: int  # of its first sample
    unfinished: int  # unfinished samples
    started: bool = False


class EngineLoop:
    """Runs one model's `steps` in a separate thread."""

    def __init__(self, steps: Steps, name: str, reads_whole_prompts: bool = False) -> None:
        self.steps = steps
        self.name = name
        self.reads_whole_prompts = reads_whole_prompts  # in one step, which may take minutes
        self.first, self.between, self._generated = (
            FIRST_TOKEN_SECONDS.labels(name),
            BETWEEN_TOKENS_SECONDS.labels(name),
            GENERATED_TOKENS.labels(name),
        )
        self._wake = threading.Condition()
        self._submitted: deque[GenerationStream] = deque()
        self._cancelled: deque[GenerationStream] = deque()
        self._tickets: dict[int, _RunningRequest] = {}
        self._deadline: float | None = None  # deadline of all requests, once the loop shuts down
        self._last_step = time.monotonic()
        self._event_loop: asyncio.AbstractEventLoop | None = None
        context = copy_context()  # contains, for example, whether kernels are deterministic
        self._thread = threading.Thread(target=context.run, args=(self._run,), name=f"engine {name}", daemon=True)
        self._thread.start()

    def stream(self, requests: Sequence[Request]) -> GenerationStream:
        """The output of these requests, which start on entering the context."""
        return GenerationStream(self, requests)

    def submit(self, stream: GenerationStream) -> None:
        """On the event loop: start these requests. StatusError 503 if the loop is shutting down."""
        self._event_loop = asyncio.get_running_loop()
        with self._wake:
            if self._deadline is not None:
                raise shutdown_error()
            if not self.working:
                self._last_step = time.monotonic()
            self._submitted.append(stream)
            self._wake.notify()

    def cancel(self, stream: GenerationStream) -> None:
        """On the event loop: cancel these requests before the next step."""
        with self._wake:
            self._cancelled.append(stream)
            self._wake.notify()

    @property
    def working(self) -> bool:
        """Whether there are any requests."""
        return bool(self._tickets or self._submitted)

    @property
    def seconds_since_step(self) -> float:
        """Seconds since the last step ended, or 0 without work."""
        return time.monotonic() - self._last_step if self.working else 0.0

    async def close(self, seconds: float) -> None:
        """Refuse requests without output, let the others continue for `seconds`, and stop the thread."""
        with self._wake:
            if self._deadline is None:
                self._deadline = time.monotonic() + seconds
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, seconds + _LAST_STEP_SECONDS)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._submitted or self._cancelled or self._tickets or self._deadline is not None):
                    self._wake.wait()
                submitted, cancelled = list(self._submitted), list(self._cancelled)
                self._cancelled.clear()
            events: list[tuple[GenerationStream, StreamEvent]] = []
            for stream in submitted:
                index = 0
                try:
                    for request in stream.requests:
                        ticket = self.steps.submit(request)
                        self._tickets[ticket] = _RunningRequest(stream, index, request.n)
                        index += request.n
                except Exception as error:
                    self._drop(stream)
                    events.append((stream, error))
            with self._wake:  # only now, so that `working` never misses them
                for _ in submitted:
                    self._submitted.popleft()
            for stream in cancelled:
                self._drop(stream)
            if self._deadline is not None:
                is_over = time.monotonic() >= self._deadline
                started = {id(ticket.stream) for ticket in self._tickets.values() if ticket.started}
                running = {id(ticket.stream): ticket.stream for ticket in self._tickets.values()}
                for key, stream in running.items():  # those without output; after the deadline, all
                    if is_over or key not in started:
                        self._drop(stream)
                        events.append((stream, shutdown_error()))
            if self._tickets or cancelled:  # a step frees cancelled requests, even if nothing else runs
                events += self._step()
            self._last_step = time.monotonic()
            if events and self._event_loop is not None:
                try:
                    self._event_loop.call_soon_threadsafe(self._deliver, events, time.monotonic())
                except RuntimeError:  # the event loop has stopped, so nobody listens
                    _LOG.debug("the last output of %s is dropped", self.name)
            if self._deadline is not None and not self.working:
                return

    def _drop(self, stream: GenerationStream) -> None:
        for ticket_id in [ticket_id for ticket_id, ticket in self._tickets.items() if ticket.stream is stream]:
            del self._tickets[ticket_id]
            try:
                self.steps.cancel(ticket_id)
            except Exception:
                _LOG.exception("a request to %s cannot be cancelled", self.name)

    def _step(self) -> list[tuple[GenerationStream, StreamEvent]]:
        try:
            step_events = self.steps.step()
        except Exception as error:  # ends the running requests, but not the server
            streams = list({id(ticket.stream): ticket.stream for ticket in self._tickets.values()}.values())
            for stream in streams:
                self._drop(stream)
            return [(stream, error) for stream in streams]
        events: list[tuple[GenerationStream, StreamEvent]] = []
        for event in step_events:
            ticket = self._tickets.get(event.ticket)
            if ticket is None:  # it was cancelled
                continue
            if event.error is not None:
                self._drop(ticket.stream)
                events.append((ticket.stream, event.error))
                continue
            ticket.started = True
            event.sequence += ticket.first_index
            events.append((ticket.stream, event))
            if event.reason is not None:
                ticket.unfinished -= 1
                if ticket.unfinished == 0:
                    del self._tickets[event.ticket]
        return events

    def _deliver(self, events: list[tuple[GenerationStream, StreamEvent]], timestamp: float) -> None:
        self._generated.inc(sum(isinstance(event, Event) and event.id is not None for _, event in events))
        for stream, event in events:
            stream.on_event(event, timestamp)


def shutdown_error() -> StatusError:
    """The error for requests to a server that is shutting down."""
    return StatusError(503, "the server is shutting down; try again in a minute", code="ending", retry_after=60)


def open_engine_loop(
    model: Model, name: str, slots: int = 64, max_waiting: int = 256, cache_memory: int | None = None
) -> EngineLoop | None:
    """An engine loop that generates a model's text, or None if the model does not generate. The compiled engine runs at
    most `slots` sequences with `cache_memory` bytes of KV cache, or one with a draft; torch runs the requests that wait
    together as one batch. At most `max_waiting` requests are in the queue.
    """
    if "generate" not in model.verbs:
        return None
    session = model.open_session()
    slots = slots if session.draft is None else 1
    steps = Scheduler(session.model, session.codec, slots, max_waiting, cache_memory, draft=session.draft)
    is_compiled = hasattr(session.model, "compute")
    if is_compiled:
        steps.submit(Request([0], limits=Limits(1)))  # warm-up: compile before the first request
        while steps.step():
            pass
    return EngineLoop(steps, name, reads_whole_prompts=not is_compiled)
