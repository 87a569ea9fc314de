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


def cpu_quota(groups: Path, membership: Path) -> float | None:
    """The CPU quota, in cores, of the control groups listed in the file `membership`, read from `groups` by version 1
    or 2; None: no limit.
    """
    quotas = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, while the file system starts at the container's group.
        for root in (groups / controllers, groups / "cpu") if controllers else (groups, groups / "unified"):
            folder = root / path.strip("/")
            for group in (folder, *folder.parents):
                if not group.is_relative_to(root):
                    continue
                try:
                    if (group / "cpu.max").exists():
                        limit, period = (group / "cpu.max").read_text().split()
                    else:
                        fields = (group / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
                        limit, period = (field.read_text().strip() for field in fields)
                    if limit not in ("max", "-1"):
                        quotas.append(int(limit) / int(period))
                except (OSError, ValueError, ZeroDivisionError):
                    continue
    return min(quotas, default=None)


_POOLS: dict[int, Pool] = {}


def pool(threads: int) -> Pool:
    """The shared pool with that many threads."""
    if threads not in _POOLS:
        _POOLS[threads] = Pool(threads)
    return _POOLS[threads]
