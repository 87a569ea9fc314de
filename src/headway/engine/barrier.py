"""Barriers between threads, and parts of their work that idle threads claim."""

from __future__ import annotations

import platform

import numpy as np

from headway.engine.codegen import I32, I64, VOID, Bool, Int, Value, builder, call, call_function, kernel, word
from headway.engine.machine import compiled, i64
from headway.engine.processor import INSTRUCTIONS

# The futex system call of Linux, by processor.
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if platform.system() == "Linux" else None
_SLEEPS = _FUTEX is not None
_WAIT, _WAKE, _ALL = 128, 129, 1 << 30  # private futex operations; more than there are threads


@kernel
def _add(address: Int, value: Int) -> Int:
    return Value(builder().atomic_rmw("add", address.at(I64).ir, value.ir, "seq_cst"))


@kernel
def _load(address: Int) -> Int:
    return Value(builder().load_atomic(address.at(I64).ir, "seq_cst", 8))


@kernel
def _relax() -> None:
    """A hint to the processor that this is a spin loop."""
    if INSTRUCTIONS != "portable":
        call("x86.sse2.pause", VOID)


@kernel
def _yield_core() -> None:
    """Yield the core to another thread."""
    if platform.system() != "Windows":
        call_function("sched_yield", I32, [], [])


@kernel
def _swap(address: Int, old: Int, new: Int) -> Bool:
    """Compare and swap: write `new` if the value is `old`; return whether it was."""
    swapped = builder().cmpxchg(address.at(I64).ir, old.ir, new.ir, "seq_cst", "seq_cst")
    return Value(builder().extract_value(swapped, 1))


@kernel
def _futex(address: Int, operation: Int, number: Int) -> None:
    """Sleep while the 32 bits at an address equal `number`, or wake that many threads that sleep there."""
    if _FUTEX is not None:
        no_timeout = word(0)
        call_function("syscall", I64, [word(_FUTEX), address, operation, number, no_timeout], [I64], more=True)


# Barrier memory: int64 in separate cache lines. The number of arrivals, the number of sleepers, the spins before a
# sleep, and for each thread the claimed parts of its share.
_SLEEPERS, _PATIENCE, _CLAIMED, _LINE = 8, 64, 128, 64  # bytes from the counter on
_MIN_SPINS, _MAX_SPINS, _RESET_INTERVAL = 16, 4000, 64  # 4,000 take 100 to 200 us; barriers between resets
_PARTS = 20  # bits for the parts of a share


def new_barrier(threads: int) -> np.ndarray:
    """Zeroed memory for a barrier of this many threads; its address is the `counter`."""
    memory = np.zeros(_CLAIMED + _LINE * (threads + 1), np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + _CLAIMED + _LINE * threads].view(np.int64)


@compiled
def barrier(counter: int, threads: int) -> None:
    """Wait until all threads have arrived.

    A thread spins for a while and then sleeps: if another program interrupted the thread it waits for, that thread gets
    this core. After each sleep threads spin half as long, and the limit is reset periodically: otherwise a short wait
    prolonged by a sleep would make them sleep forever.
    """
    if threads == 1:
        return
    arrivals = _add(counter, 1) + 1
    goal = (arrivals + threads - 1) // threads * threads
    if arrivals == goal:
        if _load(counter + _SLEEPERS) > 0:
            _futex(counter, _WAKE, _ALL)
        return
    patience, spins = i64(counter + _PATIENCE), 0
    if goal // threads % _RESET_INTERVAL == 1:
        patience[0] = _MAX_SPINS
    max_spins = patience[0]
    while _load(counter) < goal:
        if spins < max_spins:
            _relax()
            spins += 1
        else:
            # Sleep until others arrive. Either the last one sees the sleeper, or this thread sees that it has arrived.
            if _SLEEPS:
                _add(counter + _SLEEPERS, 1)
                arrivals = _load(counter)
                if arrivals < goal:
                    _futex(counter, _WAIT, arrivals)
                _add(counter + _SLEEPERS, -1)
            else:
                _yield_core()
            max_spins = max(max_spins // 2, _MIN_SPINS)
            patience[0], spins = max_spins, 0


@compiled
def comes_last(counter: int, threads: int) -> bool:
    """Arrive at a barrier without waiting; return whether all others have arrived."""
    return (_add(counter, 1) + 1) % threads == 0


@compiled
def barriers_passed(counter: int, threads: int) -> int:
    """How many barriers all threads have passed, as seen by one of them."""
    return _load(counter) // threads


@compiled
def claim_part(counter: int, owner: int, barriers: int, count: int) -> int:
    """Claim the next part of the share of `owner` since barrier number `barriers`; no other thread gets it. Returns at
    least `count` if none is left. There is one set of parts between two barriers.
    """
    address, first = counter + _CLAIMED + _LINE * owner, barriers << _PARTS
    claimed = _load(address)
    if claimed >= first + count:
        return count
    if claimed < first and _swap(address, claimed, first + 1):
        return 0
    return _add(address, 1) - first
