"""The likeliest symbols of each of many rows of logits, for searches that go on with several of each."""

from __future__ import annotations

import math

import numpy as np

from headway.engine.choosing import rooms_of
from headway.engine.drawing import GROUP, _copy, _fill_tail, _find_maxima, _group, _mass_of, _tell
from headway.engine.machine import announced, compiled
from headway.engine.pool import Pool


@compiled
def _find_likeliest(
    logits: int, stride: int, rows: int, symbols: int, mask: int, count: int, thread: int, threads: int, room: int,
    symbols_at: int, logprobs_at: int,
) -> None:  # fmt: skip
    """A thread's share of the rows."""
    groups, whole = -(-symbols // GROUP), symbols // GROUP
    tail, maxima = room, room + 4 * GROUP
    copied = maxima + 4 * GROUP * -(-groups // GROUP)
    room = copied + 4 * GROUP * groups
    for n in range(thread, rows, threads):
        x, to, mass = logits + n * stride, 4 * n * count, 0.0
        _fill_tail(x, symbols, tail)
        top = _find_maxima(x, tail, whole, groups, maxima)
        for group in range(groups):
            mass += _mass_of(_group(x, tail, whole, group), top, np.float32(1.0), 0)
        if mask:
            _copy(x, tail, whole, groups, mask, symbols, copied)
            largest = _find_maxima(copied, tail, groups, groups, maxima)
            log_mass = math.log(mass) + np.float64(top) - np.float64(largest)
            _tell(
                copied, tail, groups, groups, maxima, largest, log_mass, count, room, symbols_at + to, logprobs_at + to
            )  # fmt: skip
        else:
            _tell(
                x, tail, whole, groups, maxima, top, math.log(mass), count, room, symbols_at + to, logprobs_at + to
            )  # fmt: skip


def find_likeliest(
    logits: np.ndarray, count: int, allowed: np.ndarray | None, pool: Pool
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` likeliest symbols of each row of float32 [R, C], the likeliest first and equal ones in their order:
    int32 [R, N], and their log probabilities among all symbols in nats: float32 [R, N].

    `allowed` has a bit for each symbol that may be among them, int32 [ceil(C / 32)], the lowest bit first; None: all.
    Where a row has no distribution, its log probabilities are NaN.
    """
    rows, symbols = logits.shape
    found = np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
    places = [each.ctypes.data for each in found]
    mask = 0 if allowed is None else allowed.ctypes.data
    rooms, at = rooms_of(pool.threads, symbols)
    start, stride = logits.ctypes.data, logits.strides[0]

    def job(thread: int) -> None:
        room = at + rooms.shape[1] * thread
        _find_likeliest(start, stride, rows, symbols, mask, count, thread, pool.threads, room, *places)

    with announced(_find_likeliest):
        pool.run(job)
    return found
