"""Generation whose decoding steps wait once for a simulated GPU."""

from __future__ import annotations

from typing import Any

from headway.generate import Limits, Sampling
from headway.generate.scheduler import Request, Scheduler
from simulated_gpu import Waits


def greedy_tokens(model: Any, count: int, waits: Waits | None) -> list[int | None]:
    """The `count` most probable tokens of two prompts, in the order of the steps. With `waits`, each step after that of
    the prompts is asserted to wait once.
    """
    scheduler, ids = Scheduler(model), list[int | None]()
    if waits is not None:
        waits.clear()
    for prompt in ([3, 4, 5], [6]):
        scheduler.submit(Request(prompt, Sampling(0), Limits(count)))
    while events := scheduler.step():
        ids += [event.id for event in sorted(events, key=lambda event: event.ticket)]
        if waits is not None:
            assert waits.total == 1 or len(ids) == 2, waits.counts
            waits.clear()
    return ids
