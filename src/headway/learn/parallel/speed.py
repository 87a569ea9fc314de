"""How long each process computes per step, without waiting for the others, to name slow ones."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headway.learn.parallel.heartbeat import Heartbeat

_STEPS = 20  # steps per mean
_SLOW_FACTOR = 1.5  # times the median
_WARNING_SECONDS = 600.0  # between warnings


class ComputeTimer:
    """Measures the steps of this process, without its waits in collective operations. On a GPU, events measure; they
    are read later, so that no step waits for them. Without a device, nothing is measured.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device, self._on_gpu = device, device is not None and device.type == "cuda"
        self._start: Any = None
        self._waits: list[tuple[Any, Any]] = []
        self._steps: deque[tuple[Any, Any, list[tuple[Any, Any]]]] = deque(maxlen=_STEPS)
        self._next_warning = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """A training step with its data."""
        self._waits, start = [], self._now()
        yield
        self._steps.append((start, self._now(), self._waits))

    @contextmanager
    def wait(self) -> Iterator[None]:
        """A collective operation."""
        start = self._now()
        yield
        self._waits.append((start, self._now()))

    def mean(self) -> float:
        """Seconds per step over the last steps; 0 if there are too few. On a GPU, call it after a synchronisation."""
        if len(self._steps) < _STEPS:
            return 0.0
        spans = [self._span(start, end) - sum(self._span(*wait) for wait in waits) for start, end, waits in self._steps]
        return statistics.mean(spans)

    def slow_process(self, heartbeat: Heartbeat) -> str | None:
        """A warning that names the slowest process, in process 0; at most one every ten minutes."""
        beats = dict(zip(heartbeat.watched, heartbeat.beats))
        seconds = {rank: beat.seconds for rank, beat in beats.items()} | {0: heartbeat.seconds}
        slowest, now = max(seconds, key=lambda rank: seconds[rank]), time.monotonic()
        median = statistics.median_low(seconds.values())
        if now < self._next_warning or min(seconds.values()) == 0 or seconds[slowest] <= _SLOW_FACTOR * median:
            return None
        self._next_warning = now + _WARNING_SECONDS
        place = f" on {beats[slowest].host}" if slowest in beats else ""
        return (
            f"warning: training process {slowest}{place} is slow: it computes {seconds[slowest]:.3g} s per step, the "
            f"median is {median:.3g} s; check its machine for other work, heat or a slow disk"
        )

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter() if self._device is not None else 0.0
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _span(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start
