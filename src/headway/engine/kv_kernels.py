"""Kernels over a block of keys and values: several query heads share each load.

Within a layer a block has, for each group, keys as [K, BLOCK], so that scores of neighbouring positions are computed
together, and values as [BLOCK, V]: in fp32, or in fp16, widened on load, so that all sums are in fp32. `int8_keys`
describes the layout in int8.
"""

from __future__ import annotations

from functools import partial
from itertools import product

from headway.engine.codegen import F32, I16, STREAMED, Accumulator, Int, Value, kernel, loop, switch, vector
from headway.engine.fp16 import widen
from headway.engine.int8_keys import halves, write_int8_scores, write_int8_weigh
from headway.engine.machine import compiled
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.tiles import FP32, INT8
from headway.engine.vectors import LANES

FP16 = 3  # in addition to the kinds of weights
CACHE_DTYPES: dict[str, int] = {"fp32": FP32, "fp16": FP16, "int8": INT8}
HEADS = 4  # heads computed at once
_PARTS = 2  # vectors per head computed at once
_LINE = 64  # bytes per cache line
_KINDS = {FP32: F32, FP16: I16}
_BYTES = {FP32: 4, FP16: 2}  # per element


def block_bytes(dtype: int, groups: int, keys: int, values: int) -> int:
    """Bytes of a layer whose keys and values have these sizes per group."""
    return groups * (key_bytes(dtype, keys) + value_bytes(dtype, values) + (8 * BLOCK if dtype == INT8 else 0))


@compiled
def key_bytes(dtype: int, size: int) -> int:
    """Bytes of a group's keys in a block; in int8 features are in groups of four."""
    if dtype == INT8:
        return (size + 3) // 4 * 4 * BLOCK
    return (2 if dtype == FP16 else 4) * size * BLOCK


@compiled
def value_bytes(dtype: int, size: int) -> int:
    if dtype == INT8:
        return BLOCK * size
    return (2 if dtype == FP16 else 4) * BLOCK * size


def _load(dtype: int, address: Value, lanes: int = LANES) -> Value:
    """Elements from an address on, widened to fp32."""
    loaded = address.load(vector(_KINDS[dtype], lanes), align=_BYTES[dtype])
    return loaded if dtype == FP32 else widen(loaded)


def _write_scores(
    dtype: int, heads: int, parts: int, q: Value, query_stride: Value, keys: Value, out: Value, size: Value,
    ahead: Value,
) -> None:  # fmt: skip
    """`scores` for one dtype and number of heads and of vectors of positions."""
    y, k, called = out.at(F32), keys.at(_KINDS[dtype]), ahead.at(_KINDS[dtype])
    queries = [(q + query_stride * h).at(F32) for h in range(heads)]
    totals = [[Accumulator(vector(F32, LANES), 0.0) for _ in range(parts)] for _ in queries]
    for d in loop(size):
        offsets = [d * BLOCK + LANES * part for part in range(parts)]
        loaded = [_load(dtype, k + offset) for offset in offsets]
        for query_row, head_totals in zip(queries, totals):
            factor = (query_row + d).load().broadcast(vector(F32, LANES))
            for total, keys_of_feature in zip(head_totals, loaded):
                total.add_product(keys_of_feature, factor)
        for offset in offsets[:: _LINE // (LANES * _BYTES[dtype])]:
            (called + offset).prefetch(STREAMED)
    for h, head_totals in enumerate(totals):
        for part, total in enumerate(head_totals):
            (y + (h * CHUNK + LANES * part)).store(total.value, align=4)


def _write_weigh(
    dtype: int, heads: int, weights: Value, rescales: Value, first_position: Value, end: Value, near: Value,
    far: Value, ahead_near: Value, ahead_far: Value, size: Value, out: Value, step: Value,
) -> None:  # fmt: skip
    """`weigh` for one dtype and number of heads: features in pairs of vectors, then by eight, then one by one."""
    w, rescale, y = (address.at(F32) for address in (weights, rescales, out))
    blocks = [
        (0, *halves(first_position, end, 0), near, ahead_near),
        (1, *halves(first_position, end, 1), far, ahead_far),
    ]

    def columns(first: Value, lanes: int, parts: int) -> None:
        kind = vector(F32, lanes)
        totals = [[Accumulator(kind, 0.0) for _ in range(parts)] for _ in range(heads)]
        for number, low, high, values, ahead in blocks:
            v, called = values.at(_KINDS[dtype]), ahead.at(_KINDS[dtype])
            for t in loop(low, high):
                start = first + t * size
                offsets = [start + lanes * part for part in range(parts)]
                loaded = [_load(dtype, v + offset, lanes) for offset in offsets]
                for h, head_totals in enumerate(totals):
                    weight = (w + (t + (h * CHUNK + number * BLOCK))).load().broadcast(kind)
                    for total, features in zip(head_totals, loaded):
                        total.add_product(features, weight)
                for line in range(0, lanes * parts, _LINE // _BYTES[dtype]):
                    (called + (start + line)).prefetch(STREAMED)
        for h, head_totals in enumerate(totals):
            row, rescaled = first + step * h, (rescale + h).load().broadcast(kind)
            for part, total in enumerate(head_totals):
                target = (y + (row + lanes * part)).at(kind)
                target.store(target.load(align=4).multiply_add(rescaled, total.value), align=4)

    done: Value | int = 0
    for lanes, parts in ((LANES, _PARTS), (8, 1), (1, 1)):
        full_size = size // (lanes * parts) * (lanes * parts)
        for first in loop(done, full_size, lanes * parts):
            columns(first, lanes, parts)
        done = full_size


@kernel
def scores(
    dtype: Int, heads: Int, q: Int, query_stride: Int, bases: Int, keys: Int, out: Int, size: Int, visible: Int,
    ahead: Int,
) -> None:  # fmt: skip
    """out[h, t] = sum over d of q[h, d] keys[d, t], for up to HEADS heads, features d up to `size`, and positions t of
    the block: all, or in FP32 and FP16 the first half if no more are `visible`. Queries are `query_stride` bytes apart,
    rows of `out` CHUNK floats. In INT8 queries are as `int8_keys.split` writes them, and bases[h] is added.

    Prefetches as many keys at `ahead`: blocks are far apart and too short for the processor's prefetcher.
    """
    cases = {
        (kind * (HEADS + 1) + count) * _PARTS + parts - 1: partial(
            _write_scores, kind, count, parts, q, query_stride, keys, out, size, ahead
        )
        for kind, count, parts in product(_KINDS, range(1, HEADS + 1), range(1, _PARTS + 1))
    }
    for count in range(1, HEADS + 1):
        cases[(INT8 * (HEADS + 1) + count) * _PARTS] = partial(
            write_int8_scores, count, q, query_stride, bases, keys, out, size, ahead
        )
    second_half = (dtype.differs(INT8) & (visible > LANES)).to(heads.type, "zext")
    switch((dtype * (HEADS + 1) + heads) * _PARTS + second_half, cases)


@kernel
def weigh(
    dtype: Int, heads: Int, weights: Int, rescales: Int, start: Int, end: Int, near: Int, far: Int, ahead_near: Int,
    ahead_far: Int, size: Int, out: Int, step: Int,
) -> None:  # fmt: skip
    """out[h, d] = rescale[h] out[h, d] + sum over t from `start` to `end` of weights[h, t] values[t, d], for a chunk
    whose first values are at `near` and others at `far`. Rows of `out` are `step` floats apart. Weights of heads are
    CHUNK floats apart; in INT8 they are as `softmax_chunk_int8` writes them, and features are in full vectors only
    (`int8_keys.weigh_rest` does the others).

    Prefetches values at `ahead_near` and `ahead_far`.
    """
    operands = (weights, rescales, start, end, near, far, ahead_near, ahead_far, size, out, step)
    writers = {kind: partial(_write_weigh, kind) for kind in _KINDS} | {INT8: write_int8_weigh}
    cases = {
        kind * (HEADS + 1) + count: partial(write, count, *operands)
        for (kind, write), count in product(writers.items(), range(1, HEADS + 1))
    }
    switch(dtype * (HEADS + 1) + heads, cases)
