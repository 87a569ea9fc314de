"""Thread pool that runs programs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self._start, self._done = ([_locked() for _ in range(threads - 1)] for _ in range(2))
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
        with self._lock, _defer_interrupts():
            self._job, self._meeting[:] = job, 0
            for start in self._start:
                start.release()
            job(0)
            for done in self._done:
                done.acquire()

    def _work(self, number: int) -> None:
        start, done = self._start[number - 1], self._done[number - 1]
        while True:
            start.acquire()
            self._job(number)
            done.release()


def _locked() -> threading.Lock:
    """A lock that one thread takes and another releases: a semaphore would run Python code at each step."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@contextmanager
def _defer_interrupts() -> Iterator[None]:
    """Defer an interrupt to the end of the block."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # an interrupt cannot arrive here
        return
    interrupts: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        handler(*interrupts[0])


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
            quotas += [_quota(group) for group in (folder, *folder.parents) if group.is_relative_to(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Path) -> float | None:
    """Quota of one group, in cores."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


_POOLS: dict[int, Pool] = {}


def pool(threads: int) -> Pool:
    """The shared pool with that many threads."""
    if threads not in _POOLS:
        _POOLS[threads] = Pool(threads)
    return _POOLS[threads]
