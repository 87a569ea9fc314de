"""The threads that run a program together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np


class Pool:
    """`threads` workers, of which the caller is the first. They sleep between calls, and do not outlive the program.

    Inside a call they meet at a barrier (`machine.barrier`), whose counter is at `counter`. Calls from several threads
    come one after the other.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._turns = np.zeros(8, np.int64)  # a cache line of its own
        self._lock = threading.Lock()
        self._start = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._done = threading.Semaphore(0)
        self._job: Callable[[int], None] = lambda thread: None
        for number, start in enumerate(self._start, start=1):
            threading.Thread(target=self._work, args=(number, start), daemon=True).start()

    @property
    def counter(self) -> int:
        return self._turns.ctypes.data

    def run(self, job: Callable[[int], None]) -> None:
        """`job(thread)` on every thread; returns when all have finished. Ctrl-C waits until then, as a thread that was
        left at a barrier would wait for ever.
        """
        with self._lock, _uninterrupted():
            self._job, self._turns[:] = job, 0
            for start in self._start:
                start.release()
            job(0)
            for _ in self._start:
                self._done.acquire()

    def _work(self, number: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            self._job(number)
            self._done.release()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within, an interrupt is noted; it comes at the end."""
    own = signal.getsignal(signal.SIGINT)
    if not callable(own) or threading.current_thread() is not threading.main_thread():
        yield  # nothing would interrupt
        return
    noted: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)
    if noted:
        own(*noted[0])


_POOLS: dict[int, Pool] = {}


def pool(threads: int) -> Pool:
    """The one pool of that many threads."""
    if threads not in _POOLS:
        _POOLS[threads] = Pool(threads)
    return _POOLS[threads]
