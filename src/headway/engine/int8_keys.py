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

import numpy as np

from headway.engine import codegen, vectors
from headway.engine.codegen import I32, STREAMED, Accumulator, Float, Int, Value, add, kernel, larger, loop, word
from headway.engine.machine import F32, compiled, f32, i8, i32
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.processor import WIDE
from headway.engine.softmax import MAX_CODE, RADIX, RADIX_BITS
from headway.engine.tiles import BYTES, FLOATS, LANES, SHIFT8, SUMS, signed, unsigned
from headway.engine.vectors import dot_sixteens

FOUR = 4  # integers per lane
HEAD = 16  # bytes before the codes: the scale, and the corrections for shifted keys
_SIXTEEN = vectors.LANES
_LINE = 64  # bytes per cache line
_TOGETHER = 2 if WIDE else 1  # vectors of positions, or of features, summed at once


@compiled
def padded_to_vectors(size: int) -> int:
    """`size` rounded up to full vectors."""
    return (size + _SIXTEEN - 1) // _SIXTEEN * _SIXTEEN


@compiled
def split_bytes(size: int) -> int:
    """Bytes that `split` writes for this many floats."""
    return HEAD + 2 * padded_to_vectors(size)


def _scale(x: Value, count: Value, max_code: int) -> tuple[Value, Value]:
    """The largest magnitude / `max_code`, NaN if a float is NaN, and the factor that floats are multiplied with."""
    top, broken = Accumulator(vectors.FLOATS, 0.0), Accumulator(vectors.FLOATS, 0.0)
    for n in loop(count):
        values = (x + n * (4 * _SIXTEEN)).load(vectors.FLOATS, align=4)
        top.value = larger(values.apply("fabs"), top.value)
        broken += values * 0.0
    largest = top.value.reduce(lambda a, b: larger(b, a))
    lost = broken.value.reduce(add)
    factor = (largest > 0.0).select(float(max_code) / largest, 0.0)
    return largest / float(max_code) + lost, factor


def _to_integers(x: Value, n: Value, factor: Value) -> Value:
    values = (x + n * (4 * _SIXTEEN)).load(vectors.FLOATS, align=4)
    return (values * factor.broadcast(vectors.FLOATS)).apply("rint").to(vectors.INTEGERS, "fptosi")


def _put(integers: Value, base: Value, n: Value) -> None:
    (base + n * _SIXTEEN).store(integers.to(vectors.BYTES, "trunc"), align=1)


@kernel
def _round(x: Int, count: Int, out: Int) -> Float:
    """Floats in full vectors as integers from -127 to 127; returns their scale."""
    scale, factor = _scale(x, count, 127)
    for n in loop(count):
        _put(_to_integers(x, n, factor), out, n)
    return scale


@kernel
def split(x: Int, count: Int, out: Int) -> None:
    """Floats in full vectors as two bytes each: HEAD bytes, then all high and all low ones."""
    scale, factor = _scale(x, count, MAX_CODE)
    high = out + HEAD
    low = high + count * _SIXTEEN
    sums = [Accumulator(vectors.INTEGERS, 0) for _ in range(2)]
    for n in loop(count):
        integers = _to_integers(x, n, factor)
        above = integers + RADIX // 2 >> RADIX_BITS
        below = integers - (above << RADIX_BITS)
        for part, base, total in ((above, high, sums[0]), (below, low, sums[1])):
            _put(part, base, n)
            total += part
    out.store(scale)
    for n, total in enumerate(sums):
        (out + (4 + 4 * n)).store(total.value.reduce(add) * -SHIFT8)


def _fours(rows: list[Value], four: Value) -> list[Value]:
    """Four bytes of each row, in all lanes."""
    offset = four * FOUR
    words = [(row + offset).load(I32, align=4) for row in rows]
    return [word.broadcast(SUMS).to(BYTES) for word in words]


def _combine_bytes(high: Accumulator, low: Accumulator) -> Value:
    """RADIX high + low, of integer sums, as floats."""
    above, below = (total.value.to(FLOATS, "sitofp") for total in (high, low))
    return above.multiply_add(float(RADIX), below)


def _bytes_of(addresses: list[Value], half: Value) -> list[Value]:
    """The starts of all high and then all low bytes, `half` bytes each."""
    high = [address + HEAD for address in addresses]
    return high + [base + half for base in high]


def halves(start: Value, end: Value, number: int) -> tuple[Value, Value]:
    """The part of positions `start` to `end` of a chunk in its first (0) or second (1) block, relative to the block."""

    def within(position: Value) -> Value:
        position = position - number * BLOCK
        position = (position < 0).select(0, position)
        return (position > BLOCK).select(BLOCK, position)

    return within(start), within(end)


def write_int8_scores(
    heads: int, queries: Value, query_stride: Value, bases: Value, keys: Value, out: Value, size: Value, ahead: Value
) -> None:
    """`kv_kernels.scores` for one number of heads: bases[h] + scale[t] query[h] . key[t]."""
    addresses = [queries + query_stride * h for h in range(heads)]
    rows = _bytes_of(addresses, (size + (_SIXTEEN - 1)) // _SIXTEEN * _SIXTEEN)
    fours = (size + (FOUR - 1)) // FOUR
    scales = keys + (fours * FOUR + size) * BLOCK
    scales_ahead = ahead + (scales - keys)
    for n in range(2 * 4 * BLOCK // _LINE):
        (scales_ahead + _LINE * n).prefetch(STREAMED)
    for first in range(0, BLOCK // LANES, _TOGETHER):
        parts = range(first, first + _TOGETHER)
        totals = {part: [Accumulator(SUMS) for _ in rows] for part in parts}
        for n in range(len(rows)):
            shift = (addresses[n % heads] + (4 + 4 * (n // heads))).load(I32, align=4).broadcast(SUMS)
            for part in parts:
                totals[part][n].value = shift
        for four in loop(fours):
            query_bytes = _fours(rows, four)
            for part in parts:
                target = four * (BLOCK * FOUR) + FOUR * LANES * part
                line = (keys + target).load(BYTES, align=1)
                for total, new in zip(totals[part], signed([total.value for total in totals[part]], line, query_bytes)):
                    total.value = new
                (ahead + target).prefetch(STREAMED)
        for part in parts:
            factor = (scales + 4 * LANES * part).load(FLOATS, align=4)
            for h, address in enumerate(addresses):
                scale = factor * address.load(codegen.F32, align=4).broadcast(FLOATS)
                base = (bases + 4 * h).load(codegen.F32, align=4).broadcast(FLOATS)
                products = _combine_bytes(totals[part][h], totals[part][heads + h])
                (out + 4 * (h * CHUNK + LANES * part)).store(products.multiply_add(scale, base), align=4)


def write_int8_weigh(
    heads: int, weights: Value, rescales: Value, start: Value, end: Value, near: Value, far: Value, ahead_near: Value,
    ahead_far: Value, size: Value, out: Value, step: Value,
) -> None:  # fmt: skip
    """`kv_kernels.weigh` for one number of heads, and features in full vectors."""
    addresses = [weights + h * (HEAD + 2 * CHUNK) for h in range(heads)]
    rows = _bytes_of(addresses, word(CHUNK))
    line_bytes, count, blocks = size * FOUR, size // LANES, []
    for number, values, ahead in ((0, near, ahead_near), (1, far, ahead_far)):
        low, high = halves(start, end, number)
        low, high = low // FOUR, (high + (FOUR - 1)) // FOUR
        blocks.append(([row + number * BLOCK for row in rows], low, high, values, ahead))

    def columns(first: Value, together: int) -> None:
        offset = first * (4 * LANES)  # bytes of LANES floats, and of as many fours
        totals = [[Accumulator(SUMS, 0) for _ in rows] for _ in range(together)]
        for row_bytes, low, high, values, ahead in blocks:
            for four in loop(low, high):
                weight_bytes, start_of_four = _fours(row_bytes, four), four * line_bytes + offset
                for part, part_totals in enumerate(totals):
                    there = start_of_four + 4 * LANES * part
                    line = (values + there).load(BYTES, align=1)
                    for total, weight in zip(part_totals, weight_bytes):
                        total.value = unsigned(total.value, weight, line)
                    (ahead + there).prefetch(STREAMED)
        for part, part_totals in enumerate(totals):
            for h, address in enumerate(addresses):
                target = out + offset + 4 * LANES * part + step * (4 * h)
                rescale = (rescales + 4 * h).load(codegen.F32, align=4).broadcast(FLOATS)
                scale = address.load(codegen.F32, align=4).broadcast(FLOATS)
                old = target.load(FLOATS, align=4).times(rescale)
                products = _combine_bytes(part_totals[h], part_totals[heads + h]).times(scale)
                target.store(products.plus(old), align=4)

    paired = count // _TOGETHER * _TOGETHER
    for first in loop(0, paired, _TOGETHER):
        columns(first, _TOGETHER)
    if _TOGETHER > 1:
        for first in loop(paired, count):
            columns(first, 1)


@compiled
def weigh_rest(
    heads: int, weights: int, rescales: int, start: int, end: int, near: int, far: int, size: int, out: int, step: int
) -> None:
    """`kv_kernels.weigh` in int8 for the features after full vectors. Weights are, per head, the scale, and after HEAD
    bytes all first and then all second bytes.
    """
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
            base += dot_sixteens(moved, rotations, padded_to_vectors(2 * half) // _SIXTEEN)
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
