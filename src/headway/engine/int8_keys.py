"""Kernels over a block of keys and values in 8 bits: integers, multiplied four at a time.

Keys of a group are stored as [K / 4, BLOCK, 4], padded with zeros, and values as [BLOCK / 4, V, 4], so that one
instruction multiplies four bytes per lane and the sums of neighbouring positions, or features, stay separate. Scales
follow, [2, BLOCK]: a key is its scale x integers, and so is a value.

Queries and the weights of a chunk's positions become integers too, each as two bytes: value = scale (RADIX high + low),
128 times finer than keys. Integer sums are exact, so no result depends on what is computed next to it.

Keys are stored minus a mean, which `means` describes: `split_query` also prepares a query's products with means, which
`bases` adds to its scores.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.kv_kernels import HEADS, halves
from headway.engine.machine import _F32, _I8, _I32, F32, WIDE, cgutils, compiled, f32, i8, i32, intrinsic, types
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.softmax import MAX_CODE, RADIX, RADIX_BITS, dot
from headway.engine.tiles import BYTES, FLOATS, LANES, SHIFT8, SUMS, signed, unsigned
from headway.engine.vectors import (
    STREAMED,
    broadcast,
    call,
    constant,
    emit_switch,
    multiply_add,
    pointer,
    prefetch,
    reduce,
    word,
)

FOUR = 4  # integers per lane
HEAD = 16  # bytes before the codes: the scale, and the corrections for shifted keys
_SIXTEEN = 16
_FLOATS, _INTEGERS, _CODES = (ir.VectorType(kind, _SIXTEEN) for kind in (_F32, _I32, _I8))
_LINE = 64  # bytes per cache line
_TOGETHER = 2 if WIDE else 1  # vectors of positions, or of features, summed at once
_CONTRACT = ("contract",)


@compiled
def padded_to_vectors(size: int) -> int:
    """`size` rounded up to full vectors."""
    return (size + _SIXTEEN - 1) // _SIXTEEN * _SIXTEEN


@compiled
def split_bytes(size: int) -> int:
    """Bytes that `split` writes for this many floats."""
    return HEAD + 2 * padded_to_vectors(size)


def _at(builder: Any, address: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(pointer(builder, address, kind), align=align)


def _scale(builder: Any, x: Any, vectors: Any, max_code: int) -> tuple[Any, Any]:
    """The largest magnitude / `max_code`, NaN if a float is NaN, and the factor that floats are multiplied with."""

    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    zero, scalar_zero = constant(_FLOATS, 0.0), ir.Constant(_F32, 0.0)
    top, broken = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
    with cgutils.for_range(builder, vectors) as loop:
        values = _at(builder, builder.add(x, builder.mul(loop.index, word(4 * _SIXTEEN))), _FLOATS, 4)
        builder.store(larger(builder.load(top), call(builder, "fabs.v16f32", _FLOATS, values)), top)
        builder.store(builder.fadd(builder.load(broken), builder.fmul(values, zero)), broken)
    largest = reduce(builder, builder.load(top), larger)
    lost = reduce(builder, builder.load(broken), builder.fadd)
    factor = builder.fdiv(ir.Constant(_F32, float(max_code)), largest)
    factor = builder.select(builder.fcmp_ordered(">", largest, scalar_zero), factor, scalar_zero)
    return builder.fadd(builder.fdiv(largest, ir.Constant(_F32, float(max_code))), lost), factor


def _to_integers(builder: Any, x: Any, vector: Any, factor: Any) -> Any:
    values = _at(builder, builder.add(x, builder.mul(vector, word(4 * _SIXTEEN))), _FLOATS, 4)
    moved = builder.fmul(values, broadcast(builder, factor, _FLOATS))
    return builder.fptosi(call(builder, "rint.v16f32", _FLOATS, moved), _INTEGERS)


def _put(builder: Any, integers: Any, base: Any, vector: Any) -> None:
    address = builder.add(base, builder.mul(vector, word(_SIXTEEN)))
    builder.store(builder.trunc(integers, _CODES), pointer(builder, address, _CODES), align=1)


@intrinsic
def _round(typing: Any, x: Any, vectors: Any, out: Any) -> Any:
    """Floats as integers from -127 to 127; returns their scale."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scale, factor = _scale(builder, args[0], args[1], 127)
        with cgutils.for_range(builder, args[1]) as loop:
            _put(builder, _to_integers(builder, args[0], loop.index, factor), args[2], loop.index)
        return scale

    return types.float32(types.int64, types.int64, types.int64), generate


@intrinsic
def split(typing: Any, x: Any, vectors: Any, out: Any) -> Any:
    """Floats in full vectors as two bytes each: HEAD bytes, then all high and all low ones."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, vectors, out = args
        scale, factor = _scale(builder, x, vectors, MAX_CODE)
        high = builder.add(out, word(HEAD))
        low = builder.add(high, builder.mul(vectors, word(_SIXTEEN)))
        zero = constant(_INTEGERS, 0)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
        bits = constant(_INTEGERS, RADIX_BITS)
        half = constant(_INTEGERS, RADIX // 2)
        with cgutils.for_range(builder, vectors) as loop:
            integers = _to_integers(builder, x, loop.index, factor)
            above = builder.ashr(builder.add(integers, half), bits)
            below = builder.sub(integers, builder.shl(above, bits))
            for part, base, total in ((above, high, sums[0]), (below, low, sums[1])):
                _put(builder, part, base, loop.index)
                builder.store(builder.add(builder.load(total), part), total)
        builder.store(scale, pointer(builder, out, _F32))
        for n, total in enumerate(sums):
            moved = builder.mul(reduce(builder, builder.load(total), builder.add), ir.Constant(_I32, -SHIFT8))
            builder.store(moved, pointer(builder, builder.add(out, word(4 + 4 * n)), _I32))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _spread_fours(builder: Any, bases: list[Any], four: Any) -> list[Any]:
    """Four bytes of each of several rows, in all lanes."""
    offset = builder.mul(four, word(FOUR))
    words = [_at(builder, builder.add(base, offset), _I32, 4) for base in bases]
    return [builder.bitcast(broadcast(builder, value, SUMS), BYTES) for value in words]


def _combine_bytes(builder: Any, high: Any, low: Any) -> Any:
    """RADIX high + low, of integer sums, as floats."""
    above, below = (builder.sitofp(builder.load(total), FLOATS) for total in (high, low))
    radix = constant(FLOATS, float(RADIX))
    return multiply_add(builder, above, radix, below)


def _bytes_of(builder: Any, addresses: list[Any], half: Any) -> list[Any]:
    """The starts of all high and then all low bytes, `half` bytes each."""
    high = [builder.add(address, word(HEAD)) for address in addresses]
    return high + [builder.add(base, half) for base in high]


def _emit_scores(builder: Any, heads: int, args: Any) -> None:
    """`int8_scores` for one number of heads."""
    queries, query_stride, half, bases, keys, scales, out, fours, ahead = args
    addresses = [builder.add(queries, builder.mul(query_stride, word(h))) for h in range(heads)]
    rows = _bytes_of(builder, addresses, half)
    size = BLOCK * FOUR  # bytes of a line of all positions
    scales_ahead = builder.add(ahead, builder.sub(scales, keys))
    for n in range(2 * 4 * BLOCK // _LINE):
        prefetch(builder, pointer(builder, builder.add(scales_ahead, word(_LINE * n)), _I8), STREAMED)
    for first in range(0, BLOCK // LANES, _TOGETHER):
        parts = range(first, first + _TOGETHER)
        totals = {part: [cgutils.alloca_once(builder, SUMS) for _ in rows] for part in parts}
        for n in range(len(rows)):
            shift = _at(builder, builder.add(addresses[n % heads], word(4 + 4 * (n // heads))), _I32, 4)
            for part in parts:
                builder.store(broadcast(builder, shift, SUMS), totals[part][n])
        with cgutils.for_range(builder, fours) as loop:
            query_bytes = _spread_fours(builder, rows, loop.index)
            offset = builder.mul(loop.index, word(size))
            for part in parts:
                target = builder.add(offset, word(FOUR * LANES * part))
                line = _at(builder, builder.add(keys, target), BYTES, 1)
                for total, new in zip(
                    totals[part], signed(builder, [builder.load(total) for total in totals[part]], line, query_bytes)
                ):
                    builder.store(new, total)
                prefetch(builder, pointer(builder, builder.add(ahead, target), _I8), STREAMED)
        for part in parts:
            factor = _at(builder, builder.add(scales, word(4 * LANES * part)), FLOATS, 4)
            for h, address in enumerate(addresses):
                scale = builder.fmul(factor, broadcast(builder, _at(builder, address, _F32, 4), FLOATS))
                base = broadcast(builder, _at(builder, builder.add(bases, word(4 * h)), _F32, 4), FLOATS)
                products = _combine_bytes(builder, totals[part][h], totals[part][heads + h])
                target = builder.add(out, word(4 * (h * CHUNK + LANES * part)))
                builder.store(multiply_add(builder, products, scale, base), pointer(builder, target, FLOATS), align=4)


def _emit_weigh(builder: Any, heads: int, args: Any) -> None:
    """`_weigh` for one number of heads."""
    weights, rescales, start, end, near, far, ahead_near, ahead_far, size, out, step = args
    addresses = [builder.add(weights, word(h * (HEAD + 2 * CHUNK))) for h in range(heads)]
    rows = _bytes_of(builder, addresses, word(CHUNK))
    line_bytes, vectors = builder.mul(size, word(FOUR)), builder.sdiv(size, word(LANES))
    blocks = []
    for number, values, ahead in ((0, near, ahead_near), (1, far, ahead_far)):
        low, high = halves(builder, start, end, number)
        low, high = (
            builder.sdiv(builder.add(position, word(more)), word(FOUR))
            for position, more in ((low, 0), (high, FOUR - 1))
        )
        blocks.append(([builder.add(row, word(number * BLOCK)) for row in rows], low, high, values, ahead))

    def columns(vector: Any, together: int) -> None:
        start = builder.mul(vector, word(4 * LANES))  # bytes of LANES floats, and of as many fours
        totals = [[cgutils.alloca_once(builder, SUMS) for _ in rows] for _ in range(together)]
        for total in (total for part_totals in totals for total in part_totals):
            builder.store(constant(SUMS, 0), total)
        for row_bytes, low, high, values, ahead in blocks:
            with cgutils.for_range_slice(builder, low, high, word(1)) as (four, _):
                weight_bytes = _spread_fours(builder, row_bytes, four)
                offset = builder.add(builder.mul(four, line_bytes), start)
                for part, part_totals in enumerate(totals):
                    there = builder.add(offset, word(4 * LANES * part))
                    line = _at(builder, builder.add(values, there), BYTES, 1)
                    for total, weight in zip(part_totals, weight_bytes):
                        builder.store(unsigned(builder, builder.load(total), weight, line), total)
                    prefetch(builder, pointer(builder, builder.add(ahead, there), _I8), STREAMED)
        for part, part_totals in enumerate(totals):
            for h, address in enumerate(addresses):
                there = builder.add(builder.add(out, start), word(4 * LANES * part))
                target = pointer(builder, builder.add(there, builder.mul(step, word(4 * h))), FLOATS)
                rescale = broadcast(builder, _at(builder, builder.add(rescales, word(4 * h)), _F32, 4), FLOATS)
                scale = broadcast(builder, _at(builder, address, _F32, 4), FLOATS)
                old = builder.fmul(builder.load(target, align=4), rescale, flags=_CONTRACT)
                products = builder.fmul(
                    _combine_bytes(builder, part_totals[h], part_totals[heads + h]), scale, flags=_CONTRACT
                )
                builder.store(builder.fadd(products, old, flags=_CONTRACT), target, align=4)

    paired = builder.mul(builder.sdiv(vectors, word(_TOGETHER)), word(_TOGETHER))
    with cgutils.for_range_slice(builder, word(0), paired, word(_TOGETHER)) as (vector, _):
        columns(vector, _TOGETHER)
    if _TOGETHER > 1:
        with cgutils.for_range_slice(builder, paired, vectors, word(1)) as (vector, _):
            columns(vector, 1)


@intrinsic
def int8_scores(
    typing: Any, heads: Any, queries: Any, query_stride: Any, half: Any, bases: Any, keys: Any, scales: Any, out: Any,
    fours: Any, ahead: Any,
) -> Any:  # fmt: skip
    """out[h, t] = base[h] + scale[t] query[h] . key[t] for up to HEADS heads and BLOCK positions t. Queries are
    `query_stride` bytes apart, as `split` writes them, with `half` bytes of high ones; there are `fours` groups of four
    features. Rows of `out` are CHUNK floats apart.

    Prefetches keys and scales at `ahead`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_scores, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        emit_switch(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@intrinsic
def _weigh(
    typing: Any, heads: Any, weights: Any, rescales: Any, start: Any, end: Any, near: Any, far: Any, ahead_near: Any,
    ahead_far: Any, size: Any, out: Any, step: Any,
) -> Any:  # fmt: skip
    """`int8_weigh` for features in full vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_weigh, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        emit_switch(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), generate


@compiled
def int8_weigh(
    heads: int, weights: int, rescales: int, start: int, end: int, near: int, far: int, ahead_near: int, ahead_far: int,
    size: int, out: int, step: int,
) -> None:  # fmt: skip
    """`kv_kernels.weigh` with weights of `softmax_chunk_int8`: per head the scale, and after HEAD bytes all first and
    then all second bytes.
    """
    _weigh(heads, weights, rescales, start, end, near, far, ahead_near, ahead_far, size, out, step)
    for h in range(heads):
        head_weights = weights + h * (HEAD + 2 * CHUNK)
        y, rescale, scale = f32(out + 4 * h * step), f32(rescales)[h], f32(head_weights)[0]
        high, low = i8(head_weights + HEAD), i8(head_weights + HEAD + CHUNK)
        for d in range(size // LANES * LANES, size):
            total = np.int32(0)
            for t in range(start, end):
                weight = np.int32(RADIX) * np.int32(high[t]) + np.int32(low[t])
                slot = t % BLOCK
                code = i8(near if t < BLOCK else far)[(slot // FOUR * size + d) * FOUR + slot % FOUR]
                total += weight * np.int32(code)
            y[d] = y[d] * rescale + scale * np.float32(total)


@compiled
def _pad(x: int, size: int) -> None:
    values = f32(x)
    for d in range(size, padded_to_vectors(size)):
        values[d] = np.float32(0)


@compiled
def split_query_bytes(size: int) -> int:
    """Bytes that `split_query` writes for a query: its bytes, `size` floats in full vectors, and one more float."""
    return split_bytes(size) + 4 * padded_to_vectors(size) + 4


@compiled
def split_query(x: int, size: int, mean: int, half: int, out: int) -> None:
    """`split` of the floats at x, which has capacity for full vectors. Also its products with the mean key, if any:
    the factors of cosines and sines, `half` of each, and the unrotated part.
    """
    moved, q, m = f32(out + split_bytes(size)), f32(x), f32(mean)
    unrotated = np.float32(0)
    if mean != 0:
        for d in range(half):
            moved[d] = q[d] * m[d] + q[half + d] * m[half + d]
            moved[half + d] = q[half + d] * m[d] - q[d] * m[half + d]
        for d in range(2 * half, padded_to_vectors(2 * half)):
            moved[d] = np.float32(0)
        for d in range(2 * half, size):
            unrotated += q[d] * m[d]
    moved[padded_to_vectors(size)] = unrotated
    _pad(x, size)
    split(x, padded_to_vectors(size) // _SIXTEEN, out)


@compiled
def bases(queries: int, count: int, size: int, rotations: int, half: int, out: int) -> None:
    """The products of queries with the mean key, rotated for a chunk: `rotations` is the address of its cosines
    and sines, 0 without a mean.
    """
    for n in range(count):
        moved = queries + n * split_query_bytes(size) + split_bytes(size)
        base = f32(moved)[padded_to_vectors(size)]
        if rotations != 0:
            base += dot(moved, rotations, padded_to_vectors(2 * half) // _SIXTEEN)
        f32(out)[n] = base


@compiled
def subtract_mean(key: int, size: int, mean: int, rotations: int, half: int) -> None:
    """Subtract the mean, rotated for its chunk, from a key."""
    k, m, c, s = f32(key), f32(mean), f32(rotations), f32(rotations + 4 * half)
    for d in range(half):
        k[d] -= m[d] * c[d] - m[half + d] * s[d]
        k[half + d] -= m[half + d] * c[d] + m[d] * s[d]
    for d in range(2 * half, size):
        k[d] -= m[d]


@compiled
def store_key(x: int, size: int, keys: int, slot: int) -> F32:
    """Write a key to its slot of a block; return its scale. The buffer at x must hold `rounding_bytes`."""
    codes = x + 4 * padded_to_vectors(size)
    _pad(x, size)
    scale = _round(x, padded_to_vectors(size) // _SIXTEEN, codes)
    fours, stored = i32(codes), i32(keys)
    for four in range((size + FOUR - 1) // FOUR):
        stored[four * BLOCK + slot] = fours[four]
    return scale


@compiled
def store_value(x: int, size: int, values: int, slot: int) -> F32:
    """`store_key` for a value."""
    codes = x + 4 * padded_to_vectors(size)
    _pad(x, size)
    scale = _round(x, padded_to_vectors(size) // _SIXTEEN, codes)
    code_bytes, stored = i8(codes), i8(values + slot // FOUR * size * FOUR + slot % FOUR)
    for d in range(size):
        stored[d * FOUR] = code_bytes[d]
    return scale


@compiled
def rounding_bytes(size: int) -> int:
    """Buffer size of `store_key`: the floats in full vectors, and their bytes."""
    return 5 * padded_to_vectors(size)
