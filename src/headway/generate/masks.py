"""Token masks for one step, computed in a thread alongside the engine's. A mask that takes too long ends only its own
sequence.

A call into the library that computes masks cannot be interrupted. So if a mask is late, its thread is abandoned, a new
thread computes the remaining masks, and nothing waits for the old one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from headway.errors import UserError

MASK_SECONDS = 0.1  # CPU time limit per mask
_TOTAL, _PER_TOKEN = 1.0, 0.005  # seconds for all masks in a sequence
_LATE_THREADS = 4  # abandoned threads that may still be running; each may hold a gigabyte
_POLL = 0.005  # minimum seconds between two checks of a late mask
_CPU_CLOCK: Callable[[int], int] | None = getattr(time, "pthread_getcpuclockid", None)  # macOS lacks it

Fill = Callable[[], None]


class MaskBudget:
    """Time spent on one sequence's masks. `fill` computes the next mask."""

    def __init__(self, fill: Fill) -> None:
        self.fill = fill
        self.masks = 0
        self._seconds = 0.0

    def spend(self, seconds: float) -> None:
        """Count one mask. Raises UserError if it took too long, or all masks together did."""
        self.masks += 1
        self._seconds += seconds
        if seconds > MASK_SECONDS:
            raise _slow()
        if self._seconds > (limit := _TOTAL + _PER_TOKEN * self.masks):
            raise UserError(
                f"token masks for this response format took {self._seconds:.2f} s for {self.masks} tokens, over the "
                f"limit of {limit:.2f} s; use a simpler format"
            )


def fill_masks(budgets: Sequence[MaskBudget | None]) -> dict[int, UserError]:
    """Compute the next mask for each sequence that has a budget; return the errors of those that failed, by index."""
    failed: dict[int, UserError] = {}
    waiting = [index for index, budget in enumerate(budgets) if budget is not None]
    while waiting:
        job = _Job([(index, budget) for index in waiting if (budget := budgets[index]) is not None], failed)
        if getattr(_threads, "own", None) is None:
            _threads.own = _MaskThread()
        late = _threads.own.run(job)
        waiting = [] if late is None else waiting[waiting.index(late) + 1 :]
    return failed


class _Job:
    """Masks to compute one after another. The mask thread calls `run`; the waiting thread calls `abandon`."""

    def __init__(self, budgets: Sequence[tuple[int, MaskBudget]], failed: dict[int, UserError]) -> None:
        self.done: SimpleQueue[Exception | None] = SimpleQueue()
        self._budgets, self._failed = budgets, failed
        self._lock = threading.Lock()
        self._current: tuple[int, float] | None = None  # index, and the thread's clock when it started
        self._abandoned = False
        self._clock: Callable[[], float] = time.monotonic

    def run(self) -> bool:
        """Return whether the caller is still waiting for this job."""
        if _CPU_CLOCK is not None:
            clock = _CPU_CLOCK(threading.get_ident())
            self._clock = lambda: time.clock_gettime(clock)
        for index, budget in self._budgets:
            error: UserError | None = None
            with self._lock:
                began = self._clock()
                self._current = index, began
            try:
                if not budget.masks and len(_late) >= _LATE_THREADS:
                    raise UserError(f"{len(_late)} response formats already exceed their time limit; retry soon")
                budget.fill()
            except UserError as refused:
                error = refused
            except Exception as fault:
                self.done.put(fault)
                return True
            with self._lock:
                if self._abandoned:
                    return False
                try:
                    budget.spend(self._clock() - began)
                except UserError as refused:
                    error = error or refused
                if error is not None:
                    self._failed[index] = error
                self._current = None
        self.done.put(None)
        return True

    def used(self) -> float:
        """Seconds spent on the current mask."""
        current = self._current
        return 0.0 if current is None else self._clock() - current[1]

    def abandon(self) -> int | None:
        """The index of the late mask, which counts as failed and ends the wait for this job; None if no mask is
        late.
        """
        with self._lock:
            if self._current is None or self.used() <= MASK_SECONDS:
                return None
            self._abandoned = True
            _late.add(self)
            self._failed[self._current[0]] = _slow()
            return self._current[0]


class _MaskThread:
    """A thread that waits for jobs and ends when this object does."""

    def __init__(self) -> None:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()

        def work() -> None:  # has no reference to this object, which would never end
            while (job := jobs.get()) is not None:
                if not job.run():
                    _late.discard(job)

        self._jobs = jobs
        threading.Thread(target=work, name="masks", daemon=True).start()

    def run(self, job: _Job) -> int | None:
        """Wait for a job; return the index of the late mask, after which this thread must not be used again."""
        self._jobs.put(job)
        while True:
            try:
                fault = job.done.get(timeout=max(_POLL, MASK_SECONDS - job.used()))
            except Empty:
                late = job.abandon()
                if late is not None:
                    _threads.own = None
                    return late
                continue
            if fault is not None:
                raise fault
            return None

    def __del__(self) -> None:
        self._jobs.put(None)


_late: set[_Job] = set()  # abandoned jobs that are still running
_threads = threading.local()  # each thread's `own` mask thread


def _slow() -> UserError:
    return UserError(
        f"a token mask for this response format takes more than {MASK_SECONDS:g} s of CPU time; use a simpler format"
    )
