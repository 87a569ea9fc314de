"""Steps that are timed, alike for every program."""

from __future__ import annotations

import time
from collections.abc import Callable

_WARM_STEPS, _LEAST_STEPS, _LEAST_SECONDS = 2, 5, 2.0


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def seconds_of_a_step(step: Callable[[], object]) -> float:
    """The mean over some steps and seconds, after those that warm up."""
    for _ in range(_WARM_STEPS):
        step()
    count, started = 0, time.perf_counter()
    while count < _LEAST_STEPS or time.perf_counter() - started < _LEAST_SECONDS:
        step()
        count += 1
    return (time.perf_counter() - started) / count
