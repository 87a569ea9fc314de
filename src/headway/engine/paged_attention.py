"""Paged attention: one new token per row attends to keys and values, or an encoder's output, stored in blocks.

A block has BLOCK positions of all layers (layout: `kv_kernels`); a row's table lists the addresses of its blocks.
Contexts are cut into segments, each with its own maximum and sum (Dao et al. 2023); threads process segments in
parallel and merge them in order. Segments have CHUNK positions at first, so that a short context suffices for all
threads, and are longer later, so that merging stays cheap. The cuts do not depend on the number of threads, rows or
tokens, so the results are equal to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.engine.fp16 import put_fp16, widen_all
from headway.engine.int8_keys import (
    HEAD,
    bases,
    padded_to_vectors,
    rounding_bytes,
    split_bytes,
    split_query_bytes,
    store_key,
    store_value,
    weigh_rest,
)
from headway.engine.kv_kernels import FP16, HEADS, key_bytes, scores, value_bytes, weigh
from headway.engine.machine import F32, compiled, f32, i64
from headway.engine.operations import BLOCK, CHUNK, FAR, NEAR, at, exp, norm_row, share, tanh
from headway.engine.softmax import LOWEST, clear_partial, softmax_chunk, softmax_chunk_int8
from headway.engine.tiles import FP32, INT8


@compiled
def rotate(x: int, cos: int, sin: int, half: int) -> None:
    """Rotate the first 2 `half` features by rotary position."""
    v, c, s = f32(x), f32(cos), f32(sin)
    for d in range(half):
        a, b = v[d], v[half + d]
        v[d] = a * c[d] - b * s[d]
        v[half + d] = b * c[d] + a * s[d]


@compiled
def store_kv(dtype: int, key: int, value: int, block: int, size: int, width: int, slot: int) -> None:
    """Write a key of `size` floats and a value of `width` to their slot in a group's part of a block. In int8 the key
    is overwritten; its buffer must hold `rounding_bytes` of each.
    """
    values, k, v = block + key_bytes(dtype, size), f32(key), f32(value)
    if dtype == FP32:
        keys, stored_values = f32(block), f32(values)
        for d in range(size):
            keys[d * BLOCK + slot] = k[d]
        for d in range(width):
            stored_values[slot * width + d] = v[d]
        return
    if dtype == FP16:
        for d in range(size):
            put_fp16(block + 2 * (d * BLOCK + slot), k[d])
        for d in range(width):
            put_fp16(values + 2 * (slot * width + d), v[d])
        return
    scales = f32(values + value_bytes(dtype, width))
    scales[slot] = store_key(key, size, block, slot)
    for d in range(width):
        k[d] = v[d]
    scales[BLOCK + slot] = store_value(key, width, values, slot)


@compiled
def store_positions(
    dtype: int, keys: int, values: int, mean: int, means: int, slots: int, groups: int, size: int, width: int,
    start: int, end: int, blocks: int, offset: int, group_bytes: int, scratch: int,
) -> None:  # fmt: skip
    """`store_kv` for positions `start` to `end`; position p is in slot p modulo `slots` of float32 keys [slots, groups,
    size] and values [slots, groups, width]. Subtracts the mean [means, groups, size] from the keys: one per position,
    one for all, or none. `blocks` are the addresses of the blocks from that of `start` on, where the first group's part
    is at byte `offset`.
    """
    table, key = i64(blocks), f32(scratch)
    for p in range(start, end):
        block = table[p // BLOCK - start // BLOCK] + offset
        for g in range(groups):
            row, middle = p % slots * groups + g, g if means == 1 else p * groups + g
            old, less = f32(keys + 4 * row * size), f32(mean + 4 * middle * size)
            for d in range(size):
                key[d] = old[d] - less[d] if means > 0 else old[d]
            store_kv(dtype, scratch, values + 4 * row * width, block + g * group_bytes, size, width, p % BLOCK)


@compiled
def query_bytes(dtype: int, size: int) -> int:
    """Bytes from one prepared query to the next."""
    return split_query_bytes(size) if dtype == INT8 else 4 * size


@compiled
def _softmax_bytes() -> int:
    """Scratch of `attend_segment` for scores, rescales, products with means and int8 weights, in full cache lines."""
    return (HEADS * (4 * CHUNK + 8 + split_bytes(CHUNK)) + 63) // 64 * 64


@compiled
def scratch_bytes(dtype: int, size: int) -> int:
    """Scratch of `attend_segment`, which widens both blocks of a chunk from fp16 for many queries, or of `store_kv`."""
    widened = 2 * _fp32_bytes(size) if dtype == FP16 else 0
    return max(_softmax_bytes() + widened, rounding_bytes(size))


@compiled
def _fp32_bytes(size: int) -> int:
    """Bytes of a group's part of a block in fp32."""
    return key_bytes(FP32, size) + value_bytes(FP32, size)


@compiled
def segment_of(position: int) -> int:
    """The segment of a position."""
    return position // CHUNK if position < NEAR else NEAR // CHUNK + (position - NEAR) // FAR


@compiled
def segment_start(segment: int) -> int:
    """The first position of a segment."""
    near = NEAR // CHUNK
    return segment * CHUNK if segment <= near else NEAR + (segment - near) * FAR


@compiled
def segments_of(highest: int, window: int) -> tuple[int, int]:
    """The first visible segment for a position with a window of `window` positions (0: unlimited), and the one after
    the last.
    """
    if highest < 0:
        return 0, 0
    lowest = max(0, highest - window + 1) if window > 0 else 0
    return segment_of(lowest), segment_of(highest) + 1


@compiled
def _softmax_heads(
    dtype: int, start: int, count: int, group_heads: int, highest: int, climb: int, window: int, bias: int, span: int,
    cap: F32, near: int, far: int, scratch: int, out: int, step: int,
) -> tuple[int, int]:  # fmt: skip
    """Turn scores of `count` queries from `start` on into weights, in the format of `dtype`; return the range of the
    chunk that any of them sees. `highest` counts from the chunk's first position. Scales of values are at `near` and
    `far`.
    """
    rescales = f32(scratch + 4 * HEADS * CHUNK)
    weights, first_visible, last_visible = scratch + 4 * HEADS * (CHUNK + 2), CHUNK, 0
    visible_to, head = highest + climb * (start // group_heads), start % group_heads
    for i in range(count):
        low = max(visible_to - window + 1, 0) if window > 0 else 0
        high = min(visible_to + 1, CHUNK)
        if low < high:
            first_visible, last_visible = min(first_visible, low), max(last_visible, high)
        row = scratch + 4 * i * CHUNK
        s = f32(row)
        if cap > 0:
            for t in range(CHUNK):  # all of them, so that each is computed in the same way
                s[t] = cap * tanh(s[t] / cap)
        if bias != 0:
            distances = f32(bias + 4 * head * span)
            for t in range(low, high):
                s[t] += distances[visible_to - t]
        if dtype == INT8:
            codes = weights + i * split_bytes(CHUNK)
            rescales[i] = softmax_chunk_int8(row, low, high, out + i * step, near, far, codes, codes + HEAD)
        else:
            rescales[i] = softmax_chunk(row, low, high, out + i * step)
        head += 1
        if head == group_heads:
            visible_to, head = visible_to + climb, 0
    return first_visible, last_visible


@compiled
def attend_segment(
    dtype: int, q: int, tokens: int, group_heads: int, blocks: int, offset: int, size: int, segment: int, follows: int,
    onwards: int, highest: int, climb: int, window: int, bias: int, span: int, cap: F32, rotations: int, half: int,
    scratch: int, out: int,
) -> None:  # fmt: skip
    """One segment of the context for the `group_heads` heads of a group in each of `tokens` rows that share blocks; the
    group's keys start at byte `offset` of these. The first row sees positions up to `highest`, each further row `climb`
    more. Writes [tokens, group_heads, size + 2] floats to `out`: the maximum, the sum, and the values weighted by
    exp(score - maximum). `bias` is the first head's, by distance back.

    A row's result does not depend on the others: positions that only they see have weights of 0. `follows` is the table
    of the blocks to prefetch after this segment, from byte `onwards` on. `rotations` is the table of cosines and sines
    that rotate the means of keys, `half` of each.
    """
    table, query_stride, queries, step = i64(blocks), query_bytes(dtype, size), tokens * group_heads, 4 * (size + 2)
    rescales = scratch + 4 * HEADS * CHUNK
    products, weights = rescales + 4 * HEADS, rescales + 8 * HEADS
    wide = dtype == FP16 and queries > 2 * HEADS  # fewer are as fast directly in fp16
    kind = FP32 if wide else dtype
    key = key_bytes(kind, size)
    scales = key + value_bytes(kind, size) + 4 * BLOCK
    for query in range(queries):
        clear_partial(out + query * step, size)
    top = highest + climb * (tokens - 1)
    low = max(0, highest - window + 1) if window > 0 else 0
    first, last = max(segment_start(segment), low) // CHUNK, min(segment_start(segment + 1) - 1, top) // CHUNK + 1
    for n in range(first, last):
        has_near, visible = low < n * CHUNK + BLOCK, top + 1 - n * CHUNK
        near, far = table[2 * n] + offset, table[2 * n + 1] + offset
        if not has_near:
            near = far
        if visible <= BLOCK:
            far = near
        wanted, next_offset = (blocks + 16 * (n + 1), offset) if n + 1 < last else (follows, onwards)
        ahead_near, ahead_far = i64(wanted)[0] + next_offset, i64(wanted)[1] + next_offset
        if wide:
            widened = widened_far = scratch + _softmax_bytes()
            widen_all(near, 2 * size, widened, ahead_near)
            if far != near:
                widened_far = widened + _fp32_bytes(size)
                widen_all(far, 2 * size, widened_far, ahead_far)
            near, far = widened, widened_far
            ahead_near, ahead_far = near, far  # prefetched already
        rotation = rotations + 4 * padded_to_vectors(2 * half) * n if rotations != 0 else 0
        for start in range(0, queries, HEADS):
            count, first_query = min(queries - start, HEADS), q + start * query_stride
            if kind == INT8:
                bases(first_query, count, size, rotation, half, products)
            if has_near:
                scores(kind, count, first_query, query_stride, products, near, scratch, size, visible, ahead_near)
            if visible > BLOCK:
                scores(
                    kind, count, first_query, query_stride, products, far, scratch + 4 * BLOCK, size,
                    visible - BLOCK, ahead_far,
                )  # fmt: skip
            first_visible, last_visible = _softmax_heads(
                kind, start, count, group_heads, highest - n * CHUNK, climb, window, bias, span, cap, near + scales,
                far + scales, scratch, out + start * step, step,
            )  # fmt: skip
            into, used = out + start * step + 8, weights if kind == INT8 else scratch
            weigh(
                kind, count, used, rescales, first_visible, last_visible, near + key, far + key, ahead_near + key,
                ahead_far + key, size, into, step // 4,
            )  # fmt: skip
            if kind == INT8:
                weigh_rest(
                    count, weights, rescales, first_visible, last_visible, near + key, far + key, size, into, step // 4
                )


@compiled
def fold(y: int, top: F32, total: F32, partial: int, size: int) -> tuple[F32, F32]:
    """Merge the next partial result of a head into the sums at y; return their maximum and total."""
    sums, more = f32(y), f32(partial)
    highest = max(top, more[0])
    old, new = exp(top - highest), exp(more[0] - highest)
    for d in range(size):
        sums[d] = sums[d] * old + more[2 + d] * new
    return highest, total * old + more[1] * new


@compiled
def merge(partials: int, count: int, capacity: int, heads: int, size: int, sinks: int, out: int) -> None:
    """Merge the first `count` partial results of each head of one row: [H, capacity, size + 2] to [H, size]. A sink
    takes its share of the sum.
    """
    for h in range(heads):
        y, partial = f32(out + 4 * h * size), partials + 4 * h * capacity * (size + 2)
        top, total = LOWEST, np.float32(0)
        for d in range(size):
            y[d] = np.float32(0)
        for p in range(count):
            top, total = fold(out + 4 * h * size, top, total, partial + 4 * p * (size + 2), size)
        scale = np.float32(1)
        if sinks != 0:
            highest = max(top, f32(sinks)[h])
            scale = exp(top - highest) if total > 0 else np.float32(0)
            total = total * scale + exp(f32(sinks)[h] - highest)
        inverse = scale / total if total > 0 else np.float32(0)
        for d in range(size):
            y[d] *= inverse


@compiled
def prepare_head(x: int, size: int, norm: int, weight: int, bias: int, eps: F32, cos: int, sin: int, half: int) -> None:
    """QK norm and rotary position of one head, in place."""
    if norm >= 0:
        norm_row(norm, x, x, size, weight, bias, eps)
    if half > 0:
        rotate(x, cos, sin, half)


@compiled
def add_attend(op: Any, batch: int, scratch: int, thread: int, threads: int) -> None:
    """Additive attention, score . tanh(query + key) of each position, with partial results as in `attend_segment`."""
    units, width, capacity = op.units, op.width, op.capacity
    weights, row = f32(op.score), at(op.scores, scratch)
    s, rescale = f32(row), f32(row + 4 * CHUNK)
    first, last = share(batch * capacity, thread, threads)
    for task in range(first, last):
        b, segment = task // capacity, task % capacity
        query, table, count = f32(op.query + b * op.stride), i64(op.tables + 8 * b * op.table_step), i64(op.lengths)[b]
        if segment_start(segment) >= count:
            continue
        out, values = op.partials + 4 * task * (width + 2), op.layer + 4 * units * BLOCK
        clear_partial(out, width)
        end = min(segment_start(segment + 1), count)
        for start in range(segment_start(segment), end, CHUNK):
            visible = min(end - start, CHUNK)
            near, far = table[start // BLOCK], table[(start + visible - 1) // BLOCK]
            for t in range(CHUNK):
                s[t] = np.float32(0)
            for half in range((visible + BLOCK - 1) // BLOCK):
                base = (far if half else near) + op.layer
                for a in range(units):
                    query_unit, weight, key = query[a], weights[a], f32(base + 4 * a * BLOCK)
                    for t in range(BLOCK):
                        s[half * BLOCK + t] += weight * tanh(query_unit + key[t])
            rescale[0] = softmax_chunk(row, 0, visible, out)
            near, far = near + values, far + values
            weigh(FP32, 1, row, row + 4 * CHUNK, 0, visible, near, far, near, far, width, out + 8, 0)
