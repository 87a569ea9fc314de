"""The most probable tokens of each row of logits, for beam search."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headway.engine.machine import announce_compilation, compiled, f32, i32
from headway.engine.pool import Pool
from headway.engine.sampling_batch import scratch_of
from headway.engine.sampling_kernels import GROUP, _fill_tail, _find_maxima, _group, _largest_of, _mass_of, _top_k


@compiled
def _find_top_k_share(
    logits: int, stride: int, rows: int, vocab_size: int, suppressed: int, suppressed_count: int, count: int,
    thread: int, threads: int, scratch: int, tokens_at: int, logprobs_at: int,
) -> None:  # fmt: skip
    """A thread's share of the rows."""
    groups, full_groups, suppressed_ids = -(-vocab_size // GROUP), vocab_size // GROUP, i32(suppressed)
    tail, maxima = scratch, scratch + 4 * GROUP
    best, copied = f32(maxima), f32(tail)
    scratch = maxima + 4 * GROUP * -(-groups // GROUP)
    for n in range(thread, rows, threads):
        x, to, mass = logits + n * stride, 4 * n * count, 0.0
        row_logits = f32(x)
        _fill_tail(x, vocab_size, tail)
        top = _find_maxima(x, tail, full_groups, groups, maxima)
        for group in range(groups):
            mass += _mass_of(_group(x, tail, full_groups, group), top, np.float32(1.0), 0)
        largest = top
        if suppressed_count:
            for k in range(suppressed_count):
                token = suppressed_ids[k]
                row_logits[token] = np.float32(-np.inf)
                if token >= full_groups * GROUP:
                    copied[token - full_groups * GROUP] = np.float32(-np.inf)
                best[token // GROUP] = _largest_of(_group(x, tail, full_groups, token // GROUP))
            largest = np.float32(-np.inf)
            for group in range(groups):
                largest = max(largest, best[group])
        log_mass = math.log(mass) + np.float64(top) - np.float64(largest)
        _top_k(
            x, tail, full_groups, groups, maxima, largest, log_mass, count, scratch, tokens_at + to, logprobs_at + to
        )  # fmt: skip


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
        _find_top_k_share(
            start, stride, rows, vocab_size, suppressed_ids.ctypes.data, len(suppressed_ids), count, thread,
            pool.threads, thread_scratch, *addresses,
        )  # fmt: skip

    with announce_compilation(_find_top_k_share):
        pool.run(job)
    return outputs
