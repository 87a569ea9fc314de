"""The engine's loop: it never holds up the event loop, and a failure or a client that goes costs the others nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from generate_models import language_model
from serve_models import Script

from headway.errors import UserError
from headway.generate import Event, Limits, Sampling, Session
from headway.generate.scheduler import FullError, Request, Scheduler
from headway.nn.kernels import deterministic
from headway.serve import engine_loop as loops
from headway.serve.engine_loop import EngineLoop, GenerationStream
from headway.serve.http_errors import StatusError


def asked(text: str, copies: int = 1) -> Request:
    return Request([ord(character) for character in text], n=copies)


async def written(writing: GenerationStream) -> dict[int, str]:
    texts: dict[int, str] = {}
    async with writing:
        async for said in writing.events():
            texts[said.sequence] = texts.get(said.sequence, "") + said.text
    return texts


def on(steps: Any, work: Callable[[EngineLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run the work beside a loop, which must end, and leave nothing under way."""

    async def whole() -> Any:
        loop = EngineLoop(steps, "script")
        found = await work(loop)
        await loop.close(5)
        assert not loop._thread.is_alive()
        assert not loop.working
        return found

    return asyncio.run(asyncio.wait_for(whole(), 20))


def test_many_requests_are_told_apart() -> None:
    steps = Script()

    async def work(loop: EngineLoop) -> Any:
        several = loop.stream([asked("one", 2), asked("two!")])
        return await asyncio.gather(written(several), written(loop.stream([asked("three")])))

    assert on(steps, work) == [{0: "one", 1: "one", 2: "two!"}, {0: "three"}]
    assert steps.threads.isdisjoint({threading.get_ident()})
    assert len(steps.threads) == 1
    assert steps.cancelled == []


def test_the_event_loop_runs_while_a_step_takes_long() -> None:
    """Steps that wait for something of the event loop would else wait for ever."""
    begun, go = threading.Event(), threading.Event()

    class Waiting(Script):
        def step(self) -> list[Event]:
            begun.set()
            assert go.wait(15)
            return super().step()

    async def work(loop: EngineLoop) -> dict[int, str]:
        writing = asyncio.ensure_future(written(loop.stream([asked("ab")])))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert not writing.done()
        go.set()
        return await writing

    assert on(Waiting(), work) == {0: "ab"}


def test_what_is_refused_costs_the_others_nothing() -> None:
    async def work(loop: EngineLoop) -> Any:
        others = [written(loop.stream([asked("fine")])) for _ in range(3)]
        bad = [written(loop.stream([asked("x"), asked("y" * 1001)])), written(loop.stream([asked("z")] * 4))]
        return await asyncio.gather(*others, *bad, return_exceptions=True)

    *fine, too_long, full = on(steps := Script(wait=0.01), work)
    assert fine == [{0: "fine"}] * 3
    assert type(too_long) is UserError
    assert type(full) is FullError
    assert steps.under_way == {}  # those that came with what was refused were taken back


def test_a_failure_ends_the_requests_and_not_the_loop() -> None:
    async def work(loop: EngineLoop) -> Any:
        first = await asyncio.gather(*(written(loop.stream([asked("word")])) for _ in range(2)), return_exceptions=True)
        return first, await written(loop.stream([asked("again")]))

    failed, again = on(steps := Script(fails_at=2), work)
    assert [type(each) for each in failed] == [ZeroDivisionError] * 2
    assert again == {0: "again"}
    assert sorted(steps.cancelled) == [1, 2]


def test_who_leaves_early_is_taken_back_at_the_next_step() -> None:
    steps = Script(wait=0.01)

    async def work(loop: EngineLoop) -> int:
        writing = loop.stream([asked("x" * 900, copies=2)])
        async with writing:
            async for _ in writing.events():
                break
        stayed = asyncio.ensure_future(written(loop.stream([asked("y" * 900)])))
        await asyncio.sleep(0.1)
        stayed.cancel()
        left = steps.steps
        await asyncio.sleep(0.1)
        return steps.steps - left

    assert on(steps, work) <= 3
    assert steps.cancelled == [1, 2]


def test_who_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_MAX_UNREAD", 16)
    steps = Script()

    async def work(loop: EngineLoop) -> str:
        async with loop.stream([asked("x" * 900)]) as writing:
            await asyncio.sleep(0.3)
            with pytest.raises(StatusError) as dropped:
                async for _ in writing.events():
                    pass
        return str(dropped.value)

    assert "16 tokens of the answer are unread" in on(steps, work)
    assert steps.cancelled == [1]


def test_the_end_refuses_what_waits_and_lets_go_on_what_has_begun() -> None:
    async def work(loop: EngineLoop) -> Any:
        begun = asyncio.ensure_future(written(loop.stream([asked("begun")])))
        await asyncio.sleep(0.15)
        late = asyncio.ensure_future(written(loop.stream([asked("late")])))
        closing = asyncio.ensure_future(loop.close(5))
        await asyncio.sleep(0.01)
        with pytest.raises(StatusError, match="shutting down"):
            async with loop.stream([asked("after")]):
                pass
        found = await asyncio.gather(begun, late, return_exceptions=True)
        await closing
        return found

    begun, late = on(Script(wait=0.05), work)
    assert begun == {0: "begun"}
    assert (type(late), late.status) == (StatusError, 503)


def test_the_end_waits_no_longer_than_it_was_told() -> None:
    async def work(loop: EngineLoop) -> Any:
        writing = asyncio.ensure_future(written(loop.stream([asked("x" * 900)])))  # of at least nine seconds
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        await loop.close(0.1)
        return time.perf_counter() - started, await asyncio.gather(writing, return_exceptions=True)

    took, [ended] = on(Script(wait=0.01), work)
    assert 0.1 <= took < 8
    assert ended.status == 503


def test_a_step_that_takes_long_is_seen() -> None:
    async def work(loop: EngineLoop) -> list[float]:
        seen = [loop.seconds_since_step]
        writing = asyncio.ensure_future(written(loop.stream([asked("a")])))
        await asyncio.sleep(0.2)
        seen.append(loop.seconds_since_step)
        await writing
        return [*seen, loop.seconds_since_step]

    before, during, after = on(Script(wait=0.4), work)
    assert before == after == 0
    assert 0.1 < during < 0.4


@deterministic()
def test_requests_that_torch_runs_together_are_what_a_session_writes() -> None:
    model = language_model()
    prompts, limits = [[2, 3, 4], [5, 6]], Limits(9)
    session = Session(model)
    alone = Scheduler(model, waiting=3)
    for prompt in prompts:
        alone.submit(Request(prompt, Sampling(seed=1), limits, n=2))
    alone.cancel(alone.submit(Request([7], limits=limits)))
    with pytest.raises(UserError, match="cannot continue an empty prompt"):
        alone.submit(Request([], limits=limits))
    alone.submit(Request([8], limits=limits))
    with pytest.raises(FullError, match=r"the queue is full \(3 requests\)"):
        alone.submit(Request([9], limits=limits))
    assert alone.state()[:2] == (5, 0)
    said: list[Event] = []
    while steps := alone.step():
        said += steps
    assert len({each.ticket for each in said[:5]}) == 3, "one step for all"
    assert alone.state()[:2] == (0, 0)
    for ticket, prompt in enumerate(prompts, 1):
        for copy, whole in enumerate(session.generate([prompt] * 2, Sampling(seed=1), limits)):
            own = [each for each in said if (each.ticket, each.sequence) == (ticket, copy)]
            told = [(each.id, each.logprob) for each in own if each.id is not None]
            assert told == list(zip(whole.ids, whole.logprobs))
            assert [each.reason for each in own] == [None] * (len(own) - 1) + [whole.finish_reason]
    assert {each.ticket for each in said} == {1, 2, 4}
