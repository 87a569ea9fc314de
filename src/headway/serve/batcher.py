"""Dynamic batching: requests that wait while a model is busy share its next call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from headway.errors import UserError
from headway.generate.scheduler import FullError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _PendingRequest:
    """The items of one request; the first `len(answers)` are answered."""

    call: Callable[[list[Any]], Sequence[Any]]
    kind: Hashable
    items: list[Any]
    future: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)


class Batcher:
    """A model's thread for all tasks except step-by-step text generation. Methods are called on the event loop.

    A call takes at most `max_items` items from several requests of one kind. A request with more items contributes a
    part and waits for its next turn, so long requests do not block short ones. Requests whose client has disconnected
    are dropped. Requests of other kinds follow in order of arrival.
    """

    def __init__(self, name: str, max_items: int = 64, max_waiting: int = 256, max_jobs: int = 8) -> None:
        """`name` is the model's; at most `max_waiting` requests wait, and at most `max_jobs` multi-call jobs run."""
        self._name, self._max_items, self._max_waiting = name, max_items, max_waiting
        self._thread = ThreadPoolExecutor(1, f"headway-{name}")
        self._queue: deque[_PendingRequest] = deque()
        self._job_slots, self._waiting_jobs = asyncio.Semaphore(max_jobs), 0
        self._running: list[tuple[_PendingRequest, list[Any]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, call: Callable[[list[T]], Sequence[R]], kind: Hashable, items: Sequence[T]) -> list[R]:
        """The answer to each item. `call` answers several items, including those of other requests of this `kind`: it
        must depend on the kind and the items only.

        FullError if too many requests are waiting. A UserError from `call` goes to the request whose items cause it.
        """
        self._check_queue()
        return await self._enqueue(call, kind, items)

    async def run_job(self, call: Callable[[list[T]], Sequence[R | None]], kind: Hashable, job: T) -> R:
        """The result of a job that takes many calls. Each `call` advances several jobs of this `kind` and returns None
        for unfinished ones; new jobs join at the next call.

        At most `max_jobs` run at once, as each holds state; the others wait. FullError as in `submit`.
        """
        self._check_queue()
        self._waiting_jobs += 1
        try:
            await self._job_slots.acquire()
        finally:
            self._waiting_jobs -= 1
        try:
            while True:
                [outcome] = await self._enqueue(call, kind, [job])
                if outcome is not None:
                    return outcome
        finally:
            self._job_slots.release()

    async def run(self, job: Callable[[], R]) -> R:
        """The result of `job`, which runs alone in the model's thread when its turn comes. FullError as in `submit`."""
        [outcome] = await self.submit(lambda jobs: [call() for call in jobs], object(), [job])
        return outcome

    def state(self) -> dict[str, int]:
        """The number of running and waiting requests."""
        return {"under_way": len(self._running), "waiting": len(self._queue) + self._waiting_jobs}

    def close(self) -> None:
        """Stop the thread after its current call; waiting requests are cancelled."""
        for pending in [*(pending for pending, _ in self._running), *self._queue]:
            pending.future.cancel()
        self._queue.clear()
        self._thread.shutdown(wait=False)

    def _check_queue(self) -> None:
        waiting = self.state()["waiting"]
        if waiting >= self._max_waiting:
            raise FullError(f"{waiting} requests wait for {self._name}; try again later")

    async def _enqueue(self, call: Callable[[list[T]], Sequence[R]], kind: Hashable, items: Sequence[T]) -> list[R]:
        pending = _PendingRequest(call, kind, list(items), asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await pending.future

    async def _work(self) -> None:
        while True:
            self._queue = deque(pending for pending in self._queue if not pending.future.done())
            if not self._queue:
                break
            # The requests of the next call leave the queue, each with the items that it contributes.
            capacity, kind = self._max_items, self._queue[0].kind
            batch: list[tuple[_PendingRequest, list[Any]]] = []
            for pending in self._queue:
                if pending.kind == kind and capacity > 0:
                    start = len(pending.answers)
                    batch.append((pending, pending.items[start : start + capacity]))
                    capacity -= len(batch[-1][1])
            for pending, _ in batch:
                self._queue.remove(pending)
            self._running = batch
            await self._answer_batch(batch)
            self._queue.extend(pending for pending, _ in batch if not pending.future.done())
            await asyncio.sleep(0)  # clients that continue can submit now and share the next call
        self._running, self._worker = [], None

    async def _answer_batch(self, batch: list[tuple[_PendingRequest, list[Any]]]) -> None:
        try:
            answers = await self._call(batch[0][0].call, [item for _, items in batch for item in items])
        except UserError as error:
            [(pending, items), *others] = batch
            if not others and len(items) == len(pending.items):
                _fail(pending, error)
                return
            # The message does not identify the request, and it counts items across the batch: call each request alone.
            for pending, _ in batch:
                if pending.future.done():
                    continue
                try:
                    pending.answers = list(await self._call(pending.call, pending.items))
                except Exception as own_error:
                    _fail(pending, own_error)
                else:
                    if not pending.future.done():
                        pending.future.set_result(pending.answers)
            return
        except Exception as error:
            for pending, _ in batch:
                _fail(pending, error)
            return
        for pending, items in batch:
            pending.answers += answers[: len(items)]
            answers = answers[len(items) :]
            if len(pending.answers) == len(pending.items) and not pending.future.done():
                pending.future.set_result(pending.answers)

    async def _call(self, call: Callable[[list[Any]], Sequence[Any]], items: list[Any]) -> Sequence[Any]:
        context = copy_context()  # contains, for example, the choice of kernels
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: context.run(call, items))


def _fail(pending: _PendingRequest, error: Exception) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)
