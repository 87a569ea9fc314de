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
class _Asked:
    """The items of one request; the first `len(answers)` have their answers."""

    call: Callable[[list[Any]], Sequence[Any]]
    kind: Hashable
    items: list[Any]
    done: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)


class Batcher:
    """A model's thread for all tasks but the step-by-step generation of text. Methods are called on the event loop.

    A call takes at most `max_items` items from several requests of one kind. A request with more items contributes a
    part and waits for its next turn, so long requests do not block short ones. Requests whose client has disconnected
    are dropped. Requests of other kinds follow in order of arrival.
    """

    def __init__(self, name: str, most: int = 64, waiting: int = 256, courses: int = 8) -> None:
        """`name` is the model's; at most `max_waiting` requests wait, and `max_jobs` jobs of many calls run."""
        self._name, self._most, self._waiting = name, most, waiting
        self._thread = ThreadPoolExecutor(1, f"headway-{name}")
        self._queue: deque[_Asked] = deque()
        self._courses, self._kept_waiting = asyncio.Semaphore(courses), 0
        self._called: list[tuple[_Asked, list[Any]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def ask(self, call: Callable[[list[T]], Sequence[R]], kind: Hashable, items: Sequence[T]) -> list[R]:
        """The answer to each item. `call` answers several items, including those of other requests of this `kind`: it
        must depend on the kind and the items only.

        FullError if too many requests wait. A UserError of `call` goes to the request whose items cause it.
        """
        self._check_room()
        return await self._put(call, kind, items)

    async def follow(self, call: Callable[[list[T]], Sequence[R | None]], kind: Hashable, item: T) -> R:
        """The result of a job that takes many calls. Each `call` advances several jobs of this `kind` and returns None
        for unfinished ones; new jobs join at the next call.

        At most `max_jobs` run at once, as each holds state; the others wait. FullError as in `submit`.
        """
        self._check_room()
        self._kept_waiting += 1
        try:
            await self._courses.acquire()
        finally:
            self._kept_waiting -= 1
        try:
            while True:
                [found] = await self._put(call, kind, [item])
                if found is not None:
                    return found
        finally:
            self._courses.release()

    async def run(self, job: Callable[[], R]) -> R:
        """The result of `job`, which runs alone in the model's thread, in its turn. FullError as in `submit`."""
        [found] = await self.ask(lambda jobs: [each() for each in jobs], object(), [job])
        return found

    def state(self) -> dict[str, int]:
        """How many requests run, and how many wait."""
        return {"under_way": len(self._called), "waiting": len(self._queue) + self._kept_waiting}

    def close(self) -> None:
        """Stop the thread after its current call; waiting requests are cancelled."""
        for asked in [*(asked for asked, _ in self._called), *self._queue]:
            asked.done.cancel()
        self._queue.clear()
        self._thread.shutdown(wait=False)

    def _check_room(self) -> None:
        waiting = self.state()["waiting"]
        if waiting >= self._waiting:
            raise FullError(f"{waiting} requests wait for {self._name}; try again later")

    async def _put(self, call: Callable[[list[T]], Sequence[R]], kind: Hashable, items: Sequence[T]) -> list[R]:
        asked = _Asked(call, kind, list(items), asyncio.get_running_loop().create_future())
        self._queue.append(asked)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await asked.done

    async def _serve(self) -> None:
        while called := self._next():
            self._called = called
            await self._answer(called)
            self._queue.extend(asked for asked, _ in called if not asked.done.done())
            await asyncio.sleep(0)  # clients that continue can submit now and share the next call
        self._called, self._serving = [], None

    def _next(self) -> list[tuple[_Asked, list[Any]]]:
        """The requests of the next call, which leave the queue, each with the items that it contributes."""
        self._queue = deque(asked for asked in self._queue if not asked.done.done())
        room, kind = self._most, self._queue[0].kind if self._queue else None
        some: list[tuple[_Asked, list[Any]]] = []
        for asked in self._queue:
            if asked.kind == kind and room > 0:
                start = len(asked.answers)
                some.append((asked, asked.items[start : start + room]))
                room -= len(some[-1][1])
        for asked, _ in some:
            self._queue.remove(asked)
        return some

    async def _answer(self, some: list[tuple[_Asked, list[Any]]]) -> None:
        try:
            found = await self._call(some[0][0].call, [item for _, items in some for item in items])
        except UserError as error:
            [(asked, items), *others] = some
            if not others and len(items) == len(asked.items):
                _fail(asked, error)
                return
            # The message does not name the request, and numbers the items of the whole batch: call each alone.
            for asked, _ in some:
                if not asked.done.done():
                    await self._answer_alone(asked)
            return
        except Exception as error:
            for asked, _ in some:
                _fail(asked, error)
            return
        for asked, items in some:
            asked.answers += found[: len(items)]
            found = found[len(items) :]
            if len(asked.answers) == len(asked.items) and not asked.done.done():
                asked.done.set_result(asked.answers)

    async def _answer_alone(self, asked: _Asked) -> None:
        try:
            found = list(await self._call(asked.call, asked.items))
        except Exception as error:
            _fail(asked, error)
        else:
            if not asked.done.done():
                asked.done.set_result(found)

    async def _call(self, call: Callable[[list[Any]], Sequence[Any]], items: list[Any]) -> Sequence[Any]:
        context = copy_context()  # has, for example, the choice of kernels
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: context.run(call, items))


def _fail(asked: _Asked, error: Exception) -> None:
    if not asked.done.done():
        asked.done.set_exception(error)
