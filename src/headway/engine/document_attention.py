"""Attention within complete documents stored one after the other, for encoders.

There is no padding and no cache: the keys and values of a head in one document are laid out for the products when
needed. A few queries at a time see their full range, so weights take two passes (largest score, then exponentials). How
queries and keys are cut depends only on their positions in the document: a document's result does not depend on its
neighbours or on threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding

from headway.engine import codegen
from headway.engine.codegen import Accumulator, Float, Int, Value, kernel, larger, loop, vector
from headway.engine.machine import F32, compiled, f32, i32
from headway.engine.operations import at, exp, tanh
from headway.engine.paged_attention import prepare_head
from headway.engine.softmax import LOWEST
from headway.engine.vectors import FLOATS, LANES, exponentials_32

QUERIES = 6  # queries of a head that share each key or value loaded
SPAN = 32  # keys whose weights are computed at once
_VECTOR = vector(codegen.F32, 16 if binding.get_host_cpu_features().get("avx512f") else 8)
_PARTS = 2  # vectors of a row computed at once
COLUMNS = _PARTS * _VECTOR.count
NO_BIAS, BY_DISTANCE, BY_DOCUMENT, DISENTANGLED = range(4)


@kernel
def _products(a: Int, a_stride: Int, b: Int, b_stride: Int, steps: Int, out: Int, out_stride: Int) -> None:
    """out[k, c] = sum over t up to `steps` of a[k, t] b[t, c], for QUERIES rows k and COLUMNS columns c. Strides are in
    bytes.
    """

    def vectors(address: Value) -> list[Value]:
        return [address.at(_VECTOR) + part for part in range(_PARTS)]

    sums = [[Accumulator(_VECTOR, 0.0) for _ in range(_PARTS)] for _ in range(QUERIES)]
    rows = [(a + a_stride * k).at(codegen.F32) for k in range(QUERIES)]
    for t in loop(steps):
        columns = [address.load(align=4) for address in vectors(b + b_stride * t)]
        for row, parts in zip(rows, sums):
            factor = (row + t).load().broadcast(_VECTOR)
            for column, total in zip(columns, parts):
                total.add_product(factor, column)
    for k, parts in enumerate(sums):
        for total, address in zip(parts, vectors(out + out_stride * k)):
            address.store(total.value, align=4)


@kernel
def _largest(values: Int, count: Int) -> Float:
    """The largest of SPAN `count` floats."""
    top = Accumulator(FLOATS, float(LOWEST))
    for n in loop(count * (SPAN // LANES)):
        top.value = larger(top.value, (values.at(FLOATS) + n).load(align=4))
    return top.value.reduce(larger)


@compiled
def _softmax(scores: int, start: int, end: int, spans: int, sink: int) -> F32:
    """Turn scores into weights in place, exp(score - largest) from `start` to `end` of SPAN `spans` and 0 elsewhere;
    return their sum. A sink, if its address is not 0, is part of the sum.
    """
    s, size = f32(scores), spans * SPAN
    for t in range(start):
        s[t] = LOWEST
    for t in range(end, size):
        s[t] = LOWEST
    top, total = _largest(scores, spans), np.float32(0)
    if sink != 0:
        top = max(top, f32(sink)[0])
        total = exp(f32(sink)[0] - top)
    for n in range(spans):
        total += exponentials_32(scores + 4 * n * SPAN, top)
    for t in range(start):
        s[t] = np.float32(0)
    for t in range(end, size):
        s[t] = np.float32(0)
    return total


@compiled
def lay_out(op: Any, start: int, length: int, g: int, scratch: int) -> None:
    """Lay out the keys of a group in a document as [length / COLUMNS, K, COLUMNS], and its values as [length, V], each
    row padded to COLUMNS. The padding is arbitrary: no score or column computed from it is used.
    """
    heads, groups, size, half = op.heads, op.groups, op.size, op.half
    keys = at(op.keys, scratch)
    values = at(op.values, scratch)
    spare = at(op.spare, scratch)
    wide = padded_to_columns(op.size)
    for t in range(length):
        row, column = op.qkv + (start + t) * op.stride, f32(keys + 4 * ((t // COLUMNS) * size * COLUMNS + t % COLUMNS))
        key = f32(row + 4 * (heads + g) * size)
        if op.norm >= 0 or half > 0:
            new = f32(spare)
            for d in range(size):
                new[d] = key[d]
            cos, sin = op.cos + 4 * t * half, op.sin + 4 * t * half
            prepare_head(spare, size, op.norm, op.k_weight, op.k_bias, op.eps, cos, sin, half)
            key = new
        for d in range(size):
            column[d * COLUMNS] = key[d]
        value, stored = f32(row + 4 * (heads + groups + g) * size), f32(values + 4 * t * wide)
        for d in range(size):
            stored[d] = value[d]
    if op.bias_kind == DISENTANGLED:
        first, end = table_rows(op, 1 - length, length - 1)
        out = at(op.terms, scratch) + 4 * QUERIES * op.rows
        step = 4 * ((length + SPAN - 1) // SPAN * SPAN)
        queries = op.table + 4 * (op.heads + g) * op.rows * size
        for r in range(first // QUERIES * QUERIES, end, QUERIES):
            for t in range(0, length, COLUMNS):
                columns = keys + 4 * t * size
                row = queries + 4 * r * size
                _products(row, 4 * size, columns, 4 * COLUMNS, size, out + r * step + 4 * t, step)


@compiled
def table_rows(op: Any, low: int, high: int) -> tuple[int, int]:
    """The first row of the table of relative positions, and the one after the last, for keys from `low` to `high`
    after a query; rows decrease as keys come later.
    """
    numbers = i32(op.bias + 4 * (op.span - 1))
    return numbers[high], numbers[low] + 1


@compiled
def padded_to_columns(size: int) -> int:
    """`size` rounded up to full COLUMNS."""
    return (size + COLUMNS - 1) // COLUMNS * COLUMNS


@compiled
def _queries(op: Any, start: int, first: int, count: int, h: int, scratch: int) -> None:
    """Queries of a head from position `first` of a document on, [QUERIES, K]; padding is arbitrary."""
    size, half, queries = op.size, op.half, at(op.q, scratch)
    for i in range(count):
        new, t = f32(queries + 4 * i * size), first + i
        old = f32(op.qkv + (start + first + i) * op.stride + 4 * h * size)
        for d in range(size):
            new[d] = old[d]
        cos, sin = op.cos + 4 * t * half, op.sin + 4 * t * half
        prepare_head(queries + 4 * i * size, size, op.norm, op.q_weight, op.q_bias, op.eps, cos, sin, half)
        for d in range(size):
            new[d] *= np.float32(op.scale)


@compiled
def _add_bias(op: Any, scores: int, base: int, start: int, end: int, query: int, n: int, h: int) -> None:
    """Add biases to the scores of keys `start` to `end`, which are stored from key `base` on."""
    s, heads, span = f32(scores), op.heads, op.span
    if op.bias_kind == BY_DISTANCE:
        distances = f32(op.bias + 4 * (h * (2 * span - 1) + span - 1))
        for t in range(start, end):
            s[t - base] += distances[t - query]
    else:
        generated = f32(op.bias + 4 * ((n * heads + h) * span + query) * span)
        fixed = f32(op.table + 4 * (h * span + query) * span)
        for t in range(start, end):
            s[t - base] += generated[t] + fixed[t]


@compiled
def _add_position_terms(
    op: Any, scores: int, base: int, start: int, end: int, query: int, i: int, step: int, terms: int
) -> None:
    """Add the terms from content to position, of query `i` of QUERIES, and from position to content, whose rows are
    `step` bytes apart.
    """
    s = f32(scores)
    numbers = i32(op.bias + 4 * (op.span - 1))
    own = f32(terms + 4 * i * op.rows)
    keys = terms + 4 * QUERIES * op.rows
    for t in range(start, end):
        row = numbers[t - query]
        s[t - base] += own[row] + f32(keys + row * step)[t]


@compiled
def attend_queries(op: Any, n: int, start: int, length: int, h: int, first: int, last: int, scratch: int) -> None:
    """Attention of one head's queries `first` to `last` of document n, whose keys and values are laid out."""
    size, before, after, wide = op.size, op.before, op.after, padded_to_columns(op.size)
    queries, scores, sums = at(op.q, scratch), at(op.scores, scratch), at(op.result, scratch)
    terms = at(op.terms, scratch)
    keys, values, cap = at(op.keys, scratch), at(op.values, scratch), np.float32(op.cap)
    step = 4 * ((length + SPAN - 1) // SPAN * SPAN)
    for q in range(first, last, QUERIES):
        count = min(QUERIES, last - q)
        _queries(op, start, q, count, h, scratch)
        low, high = max(0, q - before), min(length, q + count + after)
        base, spans = low // SPAN * SPAN, (high + SPAN - 1) // SPAN - low // SPAN
        for t in range(base, base + spans * SPAN, COLUMNS):
            _products(queries, 4 * size, keys + 4 * t * size, 4 * COLUMNS, size, scores + 4 * (t - base), step)
        if op.bias_kind == DISENTANGLED:
            first_row, end_row = table_rows(op, -(q + count - 1), length - 1 - q)
            for r in range(first_row // COLUMNS * COLUMNS, end_row, COLUMNS):
                table = op.table + 4 * (h * op.rows + r) * size
                _products(queries, 4 * size, table, 4 * COLUMNS, size, terms + 4 * r, 4 * op.rows)
        for i in range(count):
            row, query = scores + i * step, q + i
            first_key, end = max(0, query - before), min(length, query + 1 + after)
            if cap > 0:
                for t in range(first_key - base, end - base):
                    f32(row)[t] = cap * tanh(f32(row)[t] / cap)
            if op.bias_kind == DISENTANGLED:
                _add_position_terms(op, row, base, first_key, end, query, i, step, terms)
            elif op.bias_kind != NO_BIAS:
                _add_bias(op, row, base, first_key, end, query, n, h)
            sink = 0 if op.sinks == 0 else op.sinks + 4 * h
            f32(at(op.spare, scratch))[i] = _softmax(row, first_key - base, end - base, spans, sink)
        for c in range(0, wide, COLUMNS):
            visible_values = values + 4 * (low * wide + c)
            _products(scores + 4 * (low - base), step, visible_values, 4 * wide, high - low, sums + 4 * c, 4 * wide)
        for i in range(count):
            out, row_sums = f32(op.out + (start + q + i) * op.out_stride + 4 * h * size), f32(sums + 4 * i * wide)
            inverse = np.float32(1) / f32(at(op.spare, scratch))[i]
            for d in range(size):
                out[d] = row_sums[d] * inverse
