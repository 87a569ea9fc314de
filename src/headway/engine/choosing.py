"""Rows whose next symbol is to be chosen, as the compiled code of `drawing.py` is told of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.engine.drawing import GROUP, ROWS, choose_rows
from headway.engine.machine import announced
from headway.engine.pool import Pool

_ALONE = 3  # rows up to which waking other threads takes longer than they would save


class Choices(NamedTuple):
    """What was chosen of each row: a symbol, -1 where its mask leaves none; its log probability in nats under the model
    as it is, NaN where that has no distribution; and as many of the likeliest symbols as any row is told, with theirs.
    """

    symbols: np.ndarray  # int64 [R]
    logprobs: np.ndarray  # float64 [R], of single precision
    top: np.ndarray  # int32 [R, N]
    top_logprobs: np.ndarray  # float32 [R, N]


class Choosing:
    """Rows whose next symbol is to be chosen: by a step of the engine, as its last instruction, or by `run`."""

    def __init__(self, rows: Sequence[tuple[int, int]], most: int = 0) -> None:
        """A row is the address of what is said of it, int64 [FIELDS] and then float64 [NUMBERS], and the place of its
        logits; both stay where they are until it is chosen. No row is told of more than `most` likeliest symbols.
        """
        count = len(rows)
        found, tops = np.empty((2, count), np.int64), np.empty((2, count, most), np.int32)
        self.choices = Choices(found[0], found[1].view(np.float64), tops[0], tops[1].view(np.float32))
        self._rows = np.array(rows, np.int64)
        at, top_at = found.ctypes.data, tops.ctypes.data
        places = (self._rows.ctypes.data, count, most, at, at + 8 * count, top_at, top_at + 4 * count * most)
        self._asked = np.array((0, 0, 0, 0, 0, *places), np.int64)

    def by(self, logits: int, stride: int, symbols: int, threads: int) -> int:
        """What `choose_rows` is given where these are the address of the logits and the bytes from one row to the next,
        in the calling thread's own room.
        """
        rooms = rooms_of(threads, symbols)
        self._asked[:ROWS] = logits, stride, symbols, rooms.ctypes.data, rooms.shape[1]
        return self._asked.ctypes.data

    def run(self, logits: Float[Tensor, "N C"], pool: Pool | None) -> Choices:
        """Choose by logits that are there. Without a pool, and of few rows, the caller's thread does it all."""
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        threads = 1 if pool is None or len(self._rows) <= _ALONE else pool.threads
        asked = self.by(logits.data_ptr(), 4 * logits.stride(0), logits.shape[1], threads)
        with announced(choose_rows):
            if pool is None or threads == 1:
                choose_rows(asked, 0, 0, 1)
            else:
                pool.run(lambda thread: choose_rows(asked, pool.counter, thread, threads))
        return self.choices


_own = threading.local()


def rooms_of(threads: int, symbols: int) -> np.ndarray:
    """Where each thread works for the thread that asks, whose own these are: uint8 [threads, N]."""
    groups = -(-symbols // GROUP)
    size = 4 * GROUP * (1 + -(-groups // GROUP) + 4 * groups) + 8 * groups
    rooms: np.ndarray | None = getattr(_own, "rooms", None)
    if rooms is None or rooms.shape[0] < threads or rooms.shape[1] < size:
        _own.rooms = rooms = np.empty((threads, -(-size // 64) * 64), np.uint8)
    return rooms
