"""Requests that share calls of a model: together while it is busy, each with its own answers and errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import pytest
import torch

import headway as hw
from headway.errors import UserError
from headway.generate.scheduler import FullError
from headway.nn.kernels import deterministic
from headway.serve.batcher import Batcher

T = TypeVar("T")


class Doubling:
    """Doubles numbers once it is let go, and notes what it was called with. -1 is refused, -2 breaks it."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go, self.called = threading.Event(), threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.calls.append(items)
        self.called.set()
        assert self.go.wait(10)
        if -1 in items:
            raise UserError(f"item {items.index(-1) + 1} of {len(items)} is negative")
        if -2 in items:
            raise RuntimeError("broken")
        return [2 * item for item in items]


def in_batcher(work: Callable[[Batcher], Awaitable[T]], most: int = 4, waiting: int = 100, courses: int = 8) -> T:
    async def inside() -> T:
        batcher = Batcher("numbers", most, waiting, courses)
        try:
            return await work(batcher)
        finally:
            batcher.close()

    return asyncio.run(inside())


async def while_busy(
    batcher: Batcher, double: Doubling, rows: Sequence[Sequence[int]], kinds: str = "aaaaaaaa"
) -> list[asyncio.Task[list[int]]]:
    """A first request that keeps the model busy, and others that wait meanwhile."""
    first = asyncio.create_task(batcher.submit(double, kinds[0], rows[0]))
    await asyncio.to_thread(double.called.wait, 10)
    others = [asyncio.create_task(batcher.submit(double, kind, row)) for kind, row in zip(kinds[1:], rows[1:])]
    await asyncio.sleep(0)
    return [first, *others]


def test_those_that_wait_go_together_up_to_the_bound_and_get_their_own() -> None:
    double = Doubling()

    async def work(batcher: Batcher) -> list[list[int]]:
        tasks = await while_busy(batcher, double, [[1], [2, 3], [4], [5, 6]])
        assert batcher.state() == {"under_way": 1, "waiting": 3}
        double.go.set()
        return await asyncio.gather(*tasks)

    assert in_batcher(work) == [[2], [4, 6], [8], [10, 12]]
    assert double.calls == [[1], [2, 3, 4, 5], [6]]


def test_a_long_one_waits_for_its_turn_again_and_other_kinds_come_in_order() -> None:
    double = Doubling()

    async def work(batcher: Batcher) -> list[list[int]]:
        tasks = await while_busy(batcher, double, [[0], list(range(1, 8)), [8], [9], []], "ababb")
        double.go.set()
        return await asyncio.gather(*tasks)

    assert in_batcher(work) == [[0], [2, 4, 6, 8, 10, 12, 14], [16], [18], []]
    assert double.calls == [[0], [1, 2, 3, 4], [8], [9, 5, 6, 7]]


def test_an_error_is_that_of_the_request_that_has_it_and_counts_its_items() -> None:
    double = Doubling()

    async def work(batcher: Batcher) -> list[list[int] | BaseException]:
        tasks = await while_busy(batcher, double, [[1], [2], [3, -1], [4], [-2]], "aaaab")
        double.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    *found, refused, four, broken = in_batcher(work)
    assert found == [[2], [4]]
    assert str(refused) == "item 2 of 2 is negative"
    assert four == [8]
    assert isinstance(broken, RuntimeError)
    assert double.calls.count([3, -1]) == 1
    with pytest.raises(UserError, match="item 1 of 1"):
        in_batcher(lambda batcher: batcher.submit(double, "a", [-1]))
    assert double.calls.count([-1]) == 1  # what was alone in its call is not called again


def test_who_has_left_is_left_out_and_too_many_are_refused() -> None:
    double = Doubling()

    async def work(batcher: Batcher) -> None:
        tasks = await while_busy(batcher, double, [[1], [2], [3], [4]])
        with pytest.raises(FullError, match="3 requests wait for numbers"):
            await batcher.submit(double, "a", [5])
        tasks[2].cancel()
        await asyncio.sleep(0)
        double.go.set()
        assert await asyncio.gather(*tasks, return_exceptions=True) != []
        assert await batcher.run(lambda: "alone") == "alone"

    in_batcher(work, waiting=3)
    assert double.calls == [[1], [2, 4]]


def test_courses_go_on_together_and_who_comes_later_joins_them() -> None:
    calls: list[list[str]] = []
    left = {"a": 3, "b": 2, "c": 2, "d": 1}
    begun = threading.Event()

    def go_on(names: list[str]) -> list[str | None]:
        calls.append(list(names))
        begun.wait(10)
        for name in names:
            left[name] -= 1
        return [None if left[name] else name.upper() for name in names]

    async def work(batcher: Batcher) -> list[str]:
        tasks = [asyncio.create_task(batcher.run_job(go_on, "courses", name)) for name in "a"]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(batcher.run_job(go_on, "courses", name)) for name in "bcd"]
        await asyncio.sleep(0)
        assert batcher.state() == {"under_way": 1, "waiting": 3}
        begun.set()
        return await asyncio.gather(*tasks)

    assert in_batcher(work, courses=3) == ["A", "B", "C", "D"]
    assert [sorted(names) for names in calls] == [["a"], ["a", "b", "c"], ["a", "b", "c"], ["d"]]


def test_a_course_whose_asker_has_left_makes_room() -> None:
    calls: list[list[str]] = []

    def go_on(names: list[str]) -> list[str | None]:
        calls.append(list(names))
        return [None if name == "endless" else name for name in names]

    async def work(batcher: Batcher) -> str:
        endless = asyncio.create_task(batcher.run_job(go_on, "courses", "endless"))
        second = asyncio.create_task(batcher.run_job(go_on, "courses", "second"))
        while len(calls) < 3:
            await asyncio.sleep(0.001)
        assert not second.done()
        endless.cancel()
        return await second

    assert in_batcher(work, courses=1) == "second"
    with pytest.raises(FullError, match="0 requests wait for numbers"):
        in_batcher(lambda batcher: batcher.run_job(go_on, "courses", "second"), waiting=0)


def test_an_end_cancels_those_who_wait() -> None:
    double = Doubling()

    async def work(batcher: Batcher) -> None:
        tasks = await while_busy(batcher, double, [[1], [2]])
        batcher.close()
        double.go.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in ended] == [asyncio.CancelledError] * 2

    in_batcher(work)


def test_a_call_runs_in_the_context_of_who_serves() -> None:
    said: ContextVar[str] = ContextVar("said", default="nothing")
    said.set("something")
    assert in_batcher(lambda batcher: batcher.run(said.get)) == "something"


def test_vectors_of_texts_that_shared_a_call(minilm: Path) -> None:
    model = hw.load(minilm)
    texts = [f"text {'and more ' * (number % 7)}of number {number}" for number in range(16)]
    call = lambda some: list(model.embed(some))  # noqa: E731

    async def work(batcher: Batcher) -> torch.Tensor:
        found = await asyncio.gather(*(batcher.submit(call, "embed", [text]) for text in texts))
        return torch.stack([row for [row] in found])

    alone = torch.stack([model.embed(text) for text in texts])
    torch.testing.assert_close(in_batcher(work, 16), alone, rtol=0, atol=1e-6)
    with deterministic():  # whose kernels add up each row in the same order, whatever stands beside it
        alone = torch.stack([model.embed(text) for text in texts[:4]])
        assert torch.equal(in_batcher(work, 16)[:4], alone)
