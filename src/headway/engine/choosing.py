"""Rows whose next token is to be sampled, in the call format of `sampling_kernels.py`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.engine.drawing import ASKED, GROUP, ROWS, choose_rows
from headway.engine.machine import announced
from headway.engine.pool import Pool

_ALONE = 3  # up to so many rows other threads would not save time


class Choices(NamedTuple):
    """The sampled tokens per row: -1 if its mask allows none; its log probability in nats before temperature and
    penalties, NaN if the row has no distribution; and the most probable tokens, as many as any row requests, with
    theirs.
    """

    symbols: np.ndarray  # int64 [R]
    logprobs: np.ndarray  # float64 [R], of single precision
    top: np.ndarray  # int32 [R, N]
    top_logprobs: np.ndarray  # float32 [R, N]


class Choosing:
    """Rows whose next token is to be sampled: by a step of the engine, as its last instruction, or by `run`."""

    def __init__(self, rows: Sequence[tuple[int, int]], most: int = 0) -> None:
        """A row is the address of its settings, int64 [FIELDS] and then float64 [FLOATS], and the row of its logits;
        both must stay in place until it is sampled. No row requests more than `max_top` most probable tokens.
        """
        count = len(rows)
        # One array for call, rows and results, because creating an array costs more than sampling a row.
        ends = (ASKED, ASKED + 2 * count, ASKED + 3 * count, ASKED + 4 * count)
        whole, tops = np.empty(ends[-1], np.int64), np.empty((2, count, most), np.int32)
        at, top_at = whole.ctypes.data, tops.ctypes.data if most else 0
        finds = (at + 8 * ends[1], at + 8 * ends[2], top_at, top_at + 4 * count * most)
        whole[: ends[1]] = [0, 0, 0, 0, 0, at + 8 * ASKED, count, most, *finds, *chain.from_iterable(rows)]
        self.choices = Choices(
            whole[ends[1] : ends[2]], whole[ends[2] :].view(np.float64), tops[0], tops[1].view(np.float32)
        )
        self._count, self._whole, self._at = count, whole, at

    def by(self, logits: int, stride: int, symbols: int, threads: int) -> int:
        """The argument of `sample_batch` for logits at this address and stride in bytes, with the calling thread's
        scratch.
        """
        rooms, at = rooms_of(threads, symbols)
        self._whole[:ROWS] = logits, stride, symbols, at, rooms.shape[1]
        return self._at

    def run(self, logits: Float[Tensor, "N C"], pool: Pool | None) -> Choices:
        """Sample from existing logits. Without a pool, or for few rows, only the calling thread works."""
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        threads = 1 if pool is None or self._count <= _ALONE else pool.threads
        asked = self.by(logits.data_ptr(), 4 * logits.stride(0), logits.shape[1], threads)
        with announced(choose_rows):
            if pool is None or threads == 1:
                choose_rows(asked, 0, 0, 1)
            else:
                pool.run(lambda thread: choose_rows(asked, pool.counter, thread, threads))
        return self.choices


_own = threading.local()


def rooms_of(threads: int, symbols: int) -> tuple[np.ndarray, int]:
    """The calling thread's scratch for each worker: uint8 [threads, N], and its address."""
    groups = -(-symbols // GROUP)
    size = 4 * GROUP * (1 + -(-groups // GROUP) + 4 * groups) + 8 * groups
    kept: tuple[np.ndarray, int] | None = getattr(_own, "rooms", None)
    if kept is None or kept[0].shape[0] < threads or kept[0].shape[1] < size:
        rooms = np.empty((threads, -(-size // 64) * 64), np.uint8)
        _own.rooms = kept = rooms, rooms.ctypes.data
    return kept
