"""The most probable tokens of each row of logits, for beam search."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headway.engine.choosing import rooms_of
from headway.engine.drawing import GROUP, _fill_tail, _find_maxima, _group, _largest_of, _mass_of, _tell
from headway.engine.machine import announced, compiled, f32, i32
from headway.engine.pool import Pool


@compiled
def _find_likeliest(
    logits: int, stride: int, rows: int, symbols: int, never: int, never_count: int, count: int,
    thread: int, threads: int, room: int, symbols_at: int, logprobs_at: int,
) -> None:  # fmt: skip
    """A thread's share of the rows."""
    groups, whole, forbidden = -(-symbols // GROUP), symbols // GROUP, i32(never)
    tail, maxima = room, room + 4 * GROUP
    best, copied = f32(maxima), f32(tail)
    room = maxima + 4 * GROUP * -(-groups // GROUP)
    for n in range(thread, rows, threads):
        x, to, mass = logits + n * stride, 4 * n * count, 0.0
        numbers = f32(x)
        _fill_tail(x, symbols, tail)
        top = _find_maxima(x, tail, whole, groups, maxima)
        for group in range(groups):
            mass += _mass_of(_group(x, tail, whole, group), top, np.float32(1.0), 0)
        largest = top
        if never_count:
            for k in range(never_count):
                symbol = forbidden[k]
                numbers[symbol] = np.float32(-np.inf)
                if symbol >= whole * GROUP:
                    copied[symbol - whole * GROUP] = np.float32(-np.inf)
                best[symbol // GROUP] = _largest_of(_group(x, tail, whole, symbol // GROUP))
            largest = np.float32(-np.inf)
            for group in range(groups):
                largest = max(largest, best[group])
        log_mass = math.log(mass) + np.float64(top) - np.float64(largest)
        _tell(
            x, tail, whole, groups, maxima, largest, log_mass, count, room, symbols_at + to, logprobs_at + to
        )  # fmt: skip


def find_likeliest(logits: np.ndarray, count: int, never: Sequence[int], pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """The `count` most probable tokens of each row of float32 [R, C], in decreasing order and ties by id: int32 [R, N],
    and their log probabilities over all tokens in nats: float32 [R, N].

    Tokens in `suppressed` are excluded, and their logits are set to -inf. A row without a distribution has log
    probabilities of NaN.
    """
    rows, symbols = logits.shape
    found = np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
    places = [each.ctypes.data for each in found]
    forbidden = np.array(never, np.int32)
    rooms, at = rooms_of(pool.threads, symbols)
    start, stride = logits.ctypes.data, logits.strides[0]

    def job(thread: int) -> None:
        room = at + rooms.shape[1] * thread
        _find_likeliest(
            start, stride, rows, symbols, forbidden.ctypes.data, len(forbidden), count, thread,
            pool.threads, room, *places,
        )  # fmt: skip

    with announced(_find_likeliest):
        pool.run(job)
    return found
