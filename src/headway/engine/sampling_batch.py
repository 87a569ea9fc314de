"""Rows whose next token is to be sampled, in the call format of `sampling_kernels.py`, or whose most probable tokens
beam search needs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.engine.machine import announce_compilation
from headway.engine.pool import Pool
from headway.engine.sampling_kernels import CALL_FIELDS, GROUP, ROWS, find_top_k_share, sample_batch

_SINGLE_THREAD_ROWS = 3  # up to this many rows, other threads would not save time


class SampledTokens(NamedTuple):
    """The sampled tokens per row: -1 if its mask allows none; its log probability in nats before temperature and
    penalties, NaN if the row has no distribution; and the most probable tokens, as many as any row requests, with
    theirs.
    """

    tokens: np.ndarray  # int64 [R]
    logprobs: np.ndarray  # float64 [R], of single precision
    top: np.ndarray  # int32 [R, N]
    top_logprobs: np.ndarray  # float32 [R, N]


class SamplingBatch:
    """Rows whose next token is to be sampled: by a step of the engine, as its last instruction, or by `run`."""

    def __init__(self, rows: Sequence[tuple[int, int]], max_top: int = 0) -> None:
        """A row is the address of its settings, int64 [FIELDS] and then float64 [FLOATS], and the row of its logits;
        both must stay in place until it is sampled. No row requests more than `max_top` most probable tokens.
        """
        count = len(rows)
        # One array for call, rows and results, because creating an array costs more than sampling a row.
        offsets = (CALL_FIELDS, CALL_FIELDS + 2 * count, CALL_FIELDS + 3 * count, CALL_FIELDS + 4 * count)
        call, tops = np.empty(offsets[-1], np.int64), np.empty((2, count, max_top), np.int32)
        address, top_address = call.ctypes.data, tops.ctypes.data if max_top else 0
        finds = (address + 8 * offsets[1], address + 8 * offsets[2], top_address, top_address + 4 * count * max_top)
        call[: offsets[1]] = [
            0,
            0,
            0,
            0,
            0,
            address + 8 * CALL_FIELDS,
            count,
            max_top,
            *finds,
            *chain.from_iterable(rows),
        ]
        self.choices = SampledTokens(
            call[offsets[1] : offsets[2]], call[offsets[2] :].view(np.float64), tops[0], tops[1].view(np.float32)
        )
        self._count, self._call, self._address = count, call, address

    def bind(self, logits: int, stride: int, vocab_size: int, threads: int) -> int:
        """The argument of `sample_batch` for logits at this address and stride in bytes, with the calling thread's
        scratch.
        """
        scratch, address = scratch_of(threads, vocab_size)
        self._call[:ROWS] = logits, stride, vocab_size, address, scratch.shape[1]
        return self._address

    def run(self, logits: Float[Tensor, "N C"], pool: Pool | None) -> SampledTokens:
        """Sample from existing logits. Without a pool, or for few rows, only the calling thread works."""
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        threads = 1 if pool is None or self._count <= _SINGLE_THREAD_ROWS else pool.threads
        call = self.bind(logits.data_ptr(), 4 * logits.stride(0), logits.shape[1], threads)
        with announce_compilation(sample_batch):
            if pool is None or threads == 1:
                sample_batch(call, 0, 0, 1)
            else:
                pool.run(lambda thread: sample_batch(call, pool.counter, thread, threads))
        return self.choices


_thread_scratch = threading.local()


def scratch_of(threads: int, vocab_size: int) -> tuple[np.ndarray, int]:
    """The calling thread's scratch for each worker: uint8 [threads, N], and its address."""
    groups = -(-vocab_size // GROUP)
    size = 4 * GROUP * (1 + -(-groups // GROUP) + 4 * groups) + 8 * groups
    cached: tuple[np.ndarray, int] | None = getattr(_thread_scratch, "rooms", None)
    if cached is None or cached[0].shape[0] < threads or cached[0].shape[1] < size:
        scratch = np.empty((threads, -(-size // 64) * 64), np.uint8)
        _thread_scratch.rooms = cached = scratch, scratch.ctypes.data
    return cached


def find_top_k(logits: np.ndarray, count: int, suppressed: Sequence[int], pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """The `count` most probable tokens of each row of float32 [R, C], in decreasing order and ties by id: int32 [R, N],
    and their log probabilities over all tokens in nats: float32 [R, N].

    Tokens in `suppressed` are excluded, and their logits are set to -inf. A row without a distribution has log
    probabilities of NaN.
    """
    rows, vocab_size = logits.shape
    outputs = np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
    addresses = [array.ctypes.data for array in outputs]
    suppressed_ids = np.array(suppressed, np.int32)
    scratch, at = scratch_of(pool.threads, vocab_size)
    start, stride = logits.ctypes.data, logits.strides[0]

    def job(thread: int) -> None:
        thread_scratch = at + scratch.shape[1] * thread
        find_top_k_share(
            start, stride, rows, vocab_size, suppressed_ids.ctypes.data, len(suppressed_ids), count, thread,
            pool.threads, thread_scratch, *addresses,
        )  # fmt: skip

    with announce_compilation(find_top_k_share):
        pool.run(job)
    return outputs
