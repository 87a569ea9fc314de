"""Thread pool that runs programs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType

import torch

from headway.engine.barrier import new_barrier
from headway.io.cpu_quota import cpu_quota


class Pool:
    """`threads` workers, the caller being the first. They sleep between calls, and end with the process.

    Within a call they synchronise at a barrier (`barrier.barrier`), whose counter is at `counter`, and claim parts of
    each other's shares (`barrier.claim_part`). Calls from several threads run one after the other.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._meeting = new_barrier(threads)
        self._lock = threading.Lock()
        # Locks that one thread takes and another releases: semaphores would run Python code at each step.
        self._start, self._done = ([threading.Lock() for _ in range(threads - 1)] for _ in range(2))
        for lock in (*self._start, *self._done):
            lock.acquire()
        self._job: Callable[[int], None] = lambda thread: None
        for number in range(1, threads):
            threading.Thread(target=self._work, args=(number,), daemon=True).start()

    @property
    def counter(self) -> int:
        return self._meeting.ctypes.data

    def run(self, job: Callable[[int], None]) -> None:
        """Run `job(thread)` on every thread; return when all have finished. Ctrl-C waits until then, because a thread
        abandoned at a barrier would wait forever.
        """
        handler, interrupts = signal.getsignal(signal.SIGINT), list[tuple[int, FrameType | None]]()
        # Otherwise an interrupt cannot arrive here.
        defers = callable(handler) and threading.current_thread() is threading.main_thread()
        with self._lock:
            if defers:
                signal.signal(signal.SIGINT, lambda number, frame: interrupts.append((number, frame)))
            try:
                self._job, self._meeting[:] = job, 0
                for start in self._start:
                    start.release()
                job(0)
                for done in self._done:
                    done.acquire()
            finally:
                if defers:
                    signal.signal(signal.SIGINT, handler)
        if interrupts and callable(handler):
            handler(*interrupts[0])

    def _work(self, number: int) -> None:
        start, done = self._start[number - 1], self._done[number - 1]
        while True:
            start.acquire()
            self._job(number)
            done.release()


_GROUPS = Path("/sys/fs/cgroup")  # control groups of Linux


def max_threads() -> int:
    """torch's threads, or fewer if the process's CPU quota is lower: threads at a barrier all wait while the system
    throttles one of them.
    """
    quota = _process_quota()
    return torch.get_num_threads() if quota is None else max(1, min(torch.get_num_threads(), int(quota)))


@cache
def _process_quota() -> float | None:
    return cpu_quota(_GROUPS, Path("/proc/self/cgroup"))


_POOLS: dict[int, Pool] = {}


def pool(threads: int) -> Pool:
    """The shared pool with that many threads."""
    if threads not in _POOLS:
        _POOLS[threads] = Pool(threads)
    return _POOLS[threads]
