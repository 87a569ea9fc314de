"""Attention within complete documents in bf16 on a processor's matrix unit; softmax is in fp32.

Tiles of 16 queries of a head process a few keys at a time; earlier sums are rescaled when a larger score comes (Milakov
and Gimelshein 2018). How queries and keys are cut depends only on their positions in the document, as in
`document_attention`. Queries are columns, so a vector has one element per query, and nothing is summed within vectors.
Queries and keys are sums of two bf16 numbers, and the smallest of the four products is dropped: a score may be large,
and its error is a relative error of the weight. Weights and values are rounded once.

A tile holds elements in pairs, each in a word of 32 bits: element r of 32 is paired with element 16 + r, in queries and
keys alike, and in weights and values, so that full vectors become pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.engine.codegen import (
    I32,
    VOID,
    Accumulator,
    Float,
    Int,
    Value,
    call,
    kernel,
    larger,
    loop,
    shuffle,
    vector,
    word,
)
from headway.engine.document_attention import BY_DISTANCE, NO_BIAS, SPAN
from headway.engine.machine import F32, compiled, f32
from headway.engine.matrix_unit import BLOCK_ROWS, BLOCKS, load_register, register, store_register
from headway.engine.operations import at, tanh
from headway.engine.paged_attention import prepare_head
from headway.engine.processor import HAS_BF16_UNIT
from headway.engine.softmax import LOWEST
from headway.engine.vectors import FLOATS, LANES, polynomial, to_bf16

QUERIES_AT_ONCE = BLOCKS * BLOCK_ROWS
KEYS_AT_ONCE = 256  # keys whose scores for this many queries stay in cache
_TILE, _LINE = 1024, 64  # bytes
_SCORES = KEYS_AT_ONCE * _LINE  # bytes of the scores of a tile of queries
_WORDS = vector(I32, LANES)
_UPPER = 0xFFFF0000
# 2^r for r from -1/2 to 1/2, to 1e-4, where bf16 has 4e-3; exact at 0, so that the smallest power is 0.
_POWERS = (0.05500869, 0.24221063, 0.69328292, 1.0)
_LOG2_E, _MIN_POWER = 1.4426950408889634, -127.0
_ROUNDER = 1.5 * 2**23  # adding this drops the fraction and leaves the integer in the lowest bits


def _pairs(low: Value, high: Value) -> Value:
    """The upper halves of two words as one."""
    return low.shift_unsigned(16) | (high & _UPPER)


@kernel
def _pair(low: Int, high: Int, out: Int) -> None:
    """16 pairs of the elements at two addresses."""
    out.store(_pairs(*(to_bf16(address.load(FLOATS, align=4)) for address in (low, high))), align=4)


@kernel
def _split(x: Int, factor: Float, out: Int) -> None:
    """16 pairs of the 32 elements at an address times a factor, and a tile further those of the rounding error."""
    first, second = [], []
    for offset in (0, _LINE):
        value = (x + offset).load(FLOATS, align=4) * factor.broadcast(FLOATS)
        first.append(to_bf16(value))
        second.append(to_bf16(value - (first[-1] & _UPPER).to(FLOATS)))
    out.store(_pairs(*first), align=4)
    (out + _TILE).store(_pairs(*second), align=4)


def _transposed(rows: list[Value]) -> list[Value]:
    """Transpose 16 rows of 16."""
    columns, size = list(rows), 1
    while size < LANES:  # swap blocks of this size across the diagonal
        lower = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
        upper = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
        for row in range(LANES):
            if not row & size:
                a, b = columns[row], columns[row + size]
                columns[row], columns[row + size] = shuffle(a, b, lower), shuffle(a, b, upper)
        size *= 2
    return columns


@kernel
def _transpose(tile: Int, out: Int) -> None:
    rows = [(tile + _LINE * row).load(_WORDS, align=4) for row in range(LANES)]
    for row, words in enumerate(_transposed(rows)):
        (out + _LINE * row).store(words, align=4)


@kernel
def _divide(tile: Int, totals: Int, out: Int) -> None:
    """16 elements of each query, which are columns, divided by their totals, as rows."""
    inverse = 1.0 / totals.load(FLOATS, align=4)
    rows = [(tile + _LINE * row).load(FLOATS, align=4) * inverse for row in range(LANES)]
    for row, values in enumerate(_transposed(rows)):
        (out + _LINE * row).store(values, align=4)


def _add_products(total: int, rows: int, columns: int) -> None:
    call("x86.tdpbf16ps", VOID, *map(register, (total, rows, columns)))


_KEYS, _QUERIES = BLOCKS, BLOCKS + 2  # registers after those of sums: both parts of keys, and of each tile of queries


def _scores(blocks: int) -> Any:
    """Scores of `count` tiles of keys, which are rows, with `blocks` tiles of queries. `chunks` of 32 elements make a
    key; both parts of each chunk are adjacent.
    """

    @kernel
    def products(keys: Int, q: Int, chunks: Int, count: Int, out: Int) -> None:
        key_bytes = chunks * (2 * _TILE)
        for n in loop(count):
            for block in range(blocks):
                call("x86.tilezero", VOID, register(block))
            tile = keys + key_bytes * n
            for chunk in loop(chunks):
                start = chunk * (2 * _TILE)
                for part in range(2):
                    load_register(_KEYS + part, tile + start + part * _TILE)
                for block in range(blocks):
                    query, first = q + start + key_bytes * block, _QUERIES + 2 * block
                    for part in range(2):
                        load_register(first + part, query + part * _TILE)
                    _add_products(block, _KEYS, first)
                    _add_products(block, _KEYS + 1, first)
                    _add_products(block, _KEYS, first + 1)
            for block in range(blocks):
                store_register(block, out + n * _TILE + block * _SCORES)

    return products


def _weigh(blocks: int) -> Any:
    """Add `count` times 32 values times their weights to a tile of sums, of 16 elements of a value, for `blocks` tiles
    of queries, whose sums are `step` bytes apart.
    """

    @kernel
    def products(values: Int, weights: Int, count: Int, out: Int, step: Int) -> None:
        sums = [out + step * block for block in range(blocks)]
        for block, address in enumerate(sums):
            load_register(block, address)
        for n in loop(count):
            start = n * _TILE
            load_register(_KEYS, values + start)
            for block in range(blocks):
                load_register(_QUERIES + block, weights + start + block * _SCORES)
                _add_products(block, _KEYS, _QUERIES + block)
        for block, address in enumerate(sums):
            store_register(block, address)

    return products


_scores_one, _scores_two = _scores(1), _scores(2)
_weigh_one, _weigh_two = _weigh(1), _weigh(2)


def _power(x: Value) -> Value:
    """2^x of each element, 0 from -127 down; x is at most 0. NaN stays NaN."""
    x = (x < _MIN_POWER).select(_MIN_POWER, x)
    moved = x.plus(_ROUNDER)  # not cancelled, unlike a sum that the compiler may reorder
    p = polynomial(_POWERS, x.minus(moved.minus(_ROUNDER)))
    return (p.to(_WORDS) + (moved.to(_WORDS) << 23)).to(FLOATS)


@kernel
def _softmax(scores: Int, spans: Int, state: Int, sums: Int, rows: Int) -> None:
    """Turn the scores of 16 queries with SPAN `spans` keys into weights exp(score - top), in pairs, in place. At
    `state` are the largest scores so far and the sums of weights; these and `rows` rows of sums are rescaled.
    """
    before = state.load(FLOATS, align=4)
    tops, totals = [Accumulator(FLOATS, before) for _ in range(2)], [Accumulator(FLOATS, 0.0) for _ in range(2)]
    for pair in loop(spans * (SPAN // 2)):
        here = scores + pair * (2 * _LINE)
        for offset, top in zip((0, _LINE), tops):
            top.value = larger(top.value, (here + offset).load(FLOATS, align=4))
    highest = larger(*(top.value for top in tops))
    state.store(highest, align=4)
    # Queries that have not seen any key get weights of 0: no score is above the lowest one.
    shift = (highest > float(LOWEST)).select(highest, 0.0) * -_LOG2_E
    for span in loop(spans):
        start = span * (SPAN * _LINE)
        for pair in loop(word(LANES)):
            here, halves = scores + start + pair * _LINE, []
            for offset, total in zip((0, _TILE), totals):
                weight = _power((here + offset).load(FLOATS, align=4).multiply_add(_LOG2_E, shift))
                total += weight
                halves.append(weight.to(_WORDS) + 0x8000)
            (here - start.shift_unsigned(1)).store(_pairs(*halves), align=4)
    rescale = _power((before - highest) * _LOG2_E)
    total = totals[0].value + totals[1].value
    summed = state + _LINE
    summed.store(summed.load(FLOATS, align=4).multiply_add(rescale, total), align=4)
    for n in loop(rows):
        row = sums + n * _LINE
        row.store(row.load(FLOATS, align=4) * rescale, align=4)


@compiled
def padded_to_chunks(size: int) -> int:
    """`size` rounded up to full chunks of 32."""
    return (size + 31) // 32 * 32


def bf16_scratch_sizes(size: int, keys: int) -> tuple[int, ...]:
    """Scratch bytes of a head's keys, values, queries, scores, rows that become tiles, and results."""
    wide, spans = -(-size // 32) * 32, -(-keys // SPAN) * SPAN
    sums = BLOCKS * (_LINE * wide + 2 * _LINE)
    return 4 * wide * spans, 2 * wide * spans, 4 * wide * QUERIES_AT_ONCE, BLOCKS * _SCORES, (12 + _LINE) * wide, sums


@compiled
def _copy_padded(source: int, size: int, target: int) -> None:
    new, old = f32(target), f32(source)
    for d in range(size):
        new[d] = old[d]
    for d in range(size, padded_to_chunks(size)):
        new[d] = np.float32(0)


@compiled
def _prepare_vector(op: Any, source: int, t: int, weight: int, bias: int, scratch: int) -> int:
    """The address of a query or key at position t, normed and rotated, padded to chunks: in scratch or in place."""
    size, half = op.size, op.half
    if op.norm < 0 and half == 0 and size == padded_to_chunks(size):
        return source
    _copy_padded(source, size, scratch)
    cos, sin = op.cos + 4 * t * half, op.sin + 4 * t * half
    prepare_head(scratch, size, op.norm, weight, bias, op.eps, cos, sin, half)
    return scratch


@compiled
def _padded_value(source: int, size: int, scratch: int) -> int:
    if size == padded_to_chunks(size):
        return source
    _copy_padded(source, size, scratch)
    return scratch


@compiled
def _clear(target: int, count: int) -> None:
    zeros = f32(target)
    for d in range(count):
        zeros[d] = np.float32(0)


@compiled
def lay_out_bf16(op: Any, start: int, length: int, g: int, scratch: int) -> None:
    """Lay out the keys of a group in a document as tiles [length / 16, K / 32, both parts] of 16 keys, and its values
    as tiles [V / 16, length / 32] of 16 elements each; padded with zeros.
    """
    size, stride, wide = op.size, op.stride, padded_to_chunks(op.size)
    keys, values, buffer = at(op.keys, scratch), at(op.values, scratch), at(op.spare, scratch)
    key = op.qkv + start * stride + 4 * (op.heads + g) * size
    value = key + 4 * op.groups * size
    other_buffer = buffer + 4 * wide
    zero = buffer + 8 * wide
    spans = (length + SPAN - 1) // SPAN
    pairs = buffer + 12 * wide
    _clear(zero, wide)
    for t in range(spans * SPAN):
        row = zero
        if t < length:
            row = _prepare_vector(op, key + t * stride, t, op.k_weight, op.k_bias, buffer)
        tile = keys + t // BLOCK_ROWS * (wide // 32) * 2 * _TILE + t % BLOCK_ROWS * _LINE
        for c in range(wide // 32):
            _split(row + 2 * c * _LINE, np.float32(1), tile + 2 * c * _TILE)
    for n in range(spans):
        for r in range(BLOCK_ROWS):
            t = n * SPAN + r
            low = _padded_value(value + t * stride, size, buffer) if t < length else zero
            t += BLOCK_ROWS
            high = _padded_value(value + t * stride, size, other_buffer) if t < length else zero
            for c in range(wide // 16):
                _pair(low + c * _LINE, high + c * _LINE, pairs + c * _TILE + r * _LINE)
        for c in range(wide // 16):
            _transpose(pairs + c * _TILE, values + (c * spans + n) * _TILE)


@compiled
def _queries(op: Any, start: int, first: int, count: int, h: int, scratch: int) -> None:
    """Queries of a head from position `first` of a document on as tiles [queries / 16, K / 32, both parts], each query
    a column; padded with zeros.
    """
    buffer, q, wide, scale = at(op.spare, scratch), at(op.q, scratch), padded_to_chunks(op.size), np.float32(op.scale)
    zero, pairs, parts = buffer + 8 * wide, buffer + 12 * wide, wide // 16
    for block in range((count + BLOCK_ROWS - 1) // BLOCK_ROWS):
        for i in range(BLOCK_ROWS):
            t, row = first + block * BLOCK_ROWS + i, zero
            if t < first + count:
                source = op.qkv + (start + t) * op.stride + 4 * h * op.size
                row = _prepare_vector(op, source, t, op.q_weight, op.q_bias, buffer)
            for c in range(wide // 32):
                _split(row + 2 * c * _LINE, scale, pairs + 2 * c * _TILE + i * _LINE)
        for part in range(parts):
            _transpose(pairs + part * _TILE, q + (block * parts + part) * _TILE)


@compiled
def _add_biases(op: Any, scores: int, base: int, end: int, query: int, count: int, n: int, h: int) -> None:
    """Add biases to the scores of keys `base` to `end`, each with a tile of queries from `query` on."""
    span = op.span
    for t in range(base, end):
        s = f32(scores + (t - base) * _LINE)
        for i in range(count):
            if op.bias_kind == BY_DISTANCE:
                s[i] += f32(op.bias + 4 * (h * (2 * span - 1) + span - 1))[t - query - i]
            else:
                generated = f32(op.bias + 4 * ((n * op.heads + h) * span + query + i) * span)
                fixed = f32(op.table + 4 * (h * span + query + i) * span)
                s[i] += generated[t] + fixed[t]


@compiled
def _hide(scores: int, base: int, start: int, end: int, query: int, before: int, after: int, length: int) -> None:
    """Set the scores of keys `start` to `end` to the lowest one for queries that do not see them."""
    for t in range(start, end):
        s = f32(scores + (t - base) * _LINE)
        if t >= length:
            for i in range(BLOCK_ROWS):
                s[i] = LOWEST
        else:
            for i in range(BLOCK_ROWS):
                if i < t - after - query or i > t + before - query:
                    s[i] = LOWEST


@compiled
def _weights(
    op: Any, cap: F32, base: int, spans: int, n: int, length: int, h: int, query: int, count: int, scores: int
) -> None:
    """Scores of a tile of queries with SPAN `spans` keys from `base` on, ready for the softmax."""
    end = base + spans * SPAN
    if cap > 0:
        s = f32(scores)
        for i in range(spans * SPAN * BLOCK_ROWS):
            s[i] = cap * tanh(s[i] / cap)
    if op.bias_kind != NO_BIAS:
        _add_biases(op, scores, base, min(end, length), query, count, n, h)
    before, after = op.before, op.after
    first, last = max(base, query + BLOCK_ROWS - 1 - before), min(end, min(length, query + after + 1))
    _hide(scores, base, base, min(first, end), query, before, after, length)
    _hide(scores, base, max(last, min(first, end)), end, query, before, after, length)


@compiled
def attend_queries_bf16(op: Any, n: int, start: int, length: int, h: int, first: int, last: int, scratch: int) -> None:
    """`document_attention.attend_queries`, for the layout of `lay_out_bf16`."""
    if not HAS_BF16_UNIT:
        return
    wide, spans, cap = padded_to_chunks(op.size), (length + SPAN - 1) // SPAN, np.float32(op.cap)
    keys, values, q, scores = at(op.keys, scratch), at(op.values, scratch), at(op.q, scratch), at(op.scores, scratch)
    sums, chunks = at(op.result, scratch), wide // 32
    tops, step = sums + BLOCKS * _LINE * wide, _LINE * wide
    for query in range(first, last, QUERIES_AT_ONCE):
        count = min(QUERIES_AT_ONCE, last - query)
        blocks = (count + BLOCK_ROWS - 1) // BLOCK_ROWS
        _queries(op, start, query, count, h, scratch)
        _clear(sums, blocks * BLOCK_ROWS * wide)
        for i in range(blocks * BLOCK_ROWS):
            state = f32(tops + i // BLOCK_ROWS * 2 * _LINE)
            state[i % BLOCK_ROWS] = LOWEST if op.sinks == 0 else f32(op.sinks)[h]
            state[BLOCK_ROWS + i % BLOCK_ROWS] = np.float32(0 if op.sinks == 0 else 1)
        low, high = max(0, query - op.before) // SPAN, (min(length, query + count + op.after) + SPAN - 1) // SPAN
        for span in range(low, high, KEYS_AT_ONCE // SPAN):
            span_count = min(high - span, KEYS_AT_ONCE // SPAN)
            tiles = keys + 2 * span * chunks * 2 * _TILE
            if blocks == 1:
                _scores_one(tiles, q, chunks, 2 * span_count, scores)
            else:
                _scores_two(tiles, q, chunks, 2 * span_count, scores)
            for b in range(blocks):
                here, query_start = scores + b * _SCORES, query + b * BLOCK_ROWS
                _weights(
                    op,
                    cap,
                    span * SPAN,
                    span_count,
                    n,
                    length,
                    h,
                    query_start,
                    min(BLOCK_ROWS, last - query_start),
                    here,
                )
                _softmax(here, span_count, tops + 2 * b * _LINE, sums + b * step, wide)
            for c in range(wide // 16):
                value_tiles, into = values + (c * spans + span) * _TILE, sums + c * _TILE
                if blocks == 1:
                    _weigh_one(value_tiles, scores, span_count, into, step)
                else:
                    _weigh_two(value_tiles, scores, span_count, into, step)
        for b in range(blocks):
            _finish(op, start, h, query + b * BLOCK_ROWS, last, sums + b * step, tops + (2 * b + 1) * _LINE, scratch)


@compiled
def _finish(op: Any, start: int, h: int, query: int, last: int, sums: int, totals: int, scratch: int) -> None:
    """Write the results of a tile of queries to the output."""
    size, columns = op.size, at(op.spare, scratch) + 12 * padded_to_chunks(op.size)
    for c in range((size + 15) // 16):
        _divide(sums + c * _TILE, totals, columns)
        for i in range(min(BLOCK_ROWS, last - query)):
            out = f32(op.out + (start + query + i) * op.out_stride + 4 * (h * size + 16 * c))
            values = f32(columns + i * _LINE)
            for d in range(min(16, size - 16 * c)):
                out[d] = values[d]
