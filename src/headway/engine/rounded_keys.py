"""Kernels over a block of keys and values in 8 bits: whole numbers, multiplied four at a time.

Keys of a group lie as [K / 4, BLOCK, 4], padded with zeros, and values as [BLOCK / 4, V, 4], so that one instruction
multiplies four bytes in each lane and the sums of neighbouring positions, or features, stay apart. Scales follow,
[2, BLOCK]: a key is its scale x whole numbers, and so is a value.

What they are multiplied with, a query or the weights of a block's positions, becomes whole numbers too, each as two
bytes: number = scale (RADIX high + low). That is 128 times finer than a key is kept. Whole sums are exact, so that no
result depends on what is computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.keys import HEADS, call_for_block
from headway.engine.machine import _F32, _I8, _I32, _I64, F32, cgutils, compiled, f32, i8, i32, intrinsic, types
from headway.engine.operations import BLOCK
from headway.engine.tiles import BYTES, FLOATS, LANES, SHIFT8, SUMS, signed
from headway.engine.vectors import call, call_for, choose, reduce, spread

FOUR = 4  # whole numbers of a lane
RADIX, MOST = 128, 127 * 128  # of numbers as two bytes
HEAD = 16  # bytes of such numbers before their bytes: the scale, and what takes away that keys are moved up
_SIXTEEN = 16
_NUMBERS, _WHOLE, _CODES = (ir.VectorType(kind, _SIXTEEN) for kind in (_F32, _I32, _I8))
_LINE = 64  # bytes that come from memory together
_CONTRACT = ("contract",)


@compiled
def padded(size: int) -> int:
    """So many numbers in whole vectors, as those are that become bytes."""
    return (size + _SIXTEEN - 1) // _SIXTEEN * _SIXTEEN


@compiled
def split_bytes(size: int) -> int:
    """What `split` makes of so many numbers."""
    return HEAD + 2 * padded(size)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _pointer(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _at(builder: Any, address: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(_pointer(builder, address, kind), align=align)


def _scale(builder: Any, x: Any, vectors: Any, most: int) -> tuple[Any, Any]:
    """The size of the largest number / `most`, NaN where a number is none, and by what numbers are multiplied."""

    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    zero, one = ir.Constant(_NUMBERS, [0.0] * _SIXTEEN), ir.Constant(_F32, 0.0)
    top, broken = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
    with cgutils.for_range(builder, vectors) as loop:
        found = _at(builder, builder.add(x, builder.mul(loop.index, _number(4 * _SIXTEEN))), _NUMBERS, 4)
        builder.store(larger(builder.load(top), call(builder, "fabs.v16f32", _NUMBERS, found)), top)
        builder.store(builder.fadd(builder.load(broken), builder.fmul(found, zero)), broken)
    largest = reduce(builder, builder.load(top), larger)
    lost = reduce(builder, builder.load(broken), builder.fadd)
    factor = builder.fdiv(ir.Constant(_F32, float(most)), largest)
    factor = builder.select(builder.fcmp_ordered(">", largest, one), factor, one)
    return builder.fadd(builder.fdiv(largest, ir.Constant(_F32, float(most))), lost), factor


def _whole(builder: Any, x: Any, vector: Any, factor: Any) -> Any:
    found = _at(builder, builder.add(x, builder.mul(vector, _number(4 * _SIXTEEN))), _NUMBERS, 4)
    moved = builder.fmul(found, spread(builder, factor, _NUMBERS))
    return builder.fptosi(call(builder, "rint.v16f32", _NUMBERS, moved), _WHOLE)


def _put(builder: Any, whole: Any, base: Any, vector: Any) -> None:
    place = builder.add(base, builder.mul(vector, _number(_SIXTEEN)))
    builder.store(builder.trunc(whole, _CODES), _pointer(builder, place, _CODES), align=1)


@intrinsic
def _round(typing: Any, x: Any, vectors: Any, out: Any) -> Any:
    """Numbers as whole numbers from -127 to 127; their scale."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scale, factor = _scale(builder, args[0], args[1], 127)
        with cgutils.for_range(builder, args[1]) as loop:
            _put(builder, _whole(builder, args[0], loop.index, factor), args[2], loop.index)
        return scale

    return types.float32(types.int64, types.int64, types.int64), generate


@intrinsic
def split(typing: Any, x: Any, vectors: Any, out: Any) -> Any:
    """Numbers in whole vectors as two bytes each, HEAD bytes and then all high and all low ones."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, vectors, out = args
        scale, factor = _scale(builder, x, vectors, MOST)
        high = builder.add(out, _number(HEAD))
        low = builder.add(high, builder.mul(vectors, _number(_SIXTEEN)))
        zero = ir.Constant(_WHOLE, [0] * _SIXTEEN)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
        bits = ir.Constant(_WHOLE, [RADIX.bit_length() - 1] * _SIXTEEN)
        half = ir.Constant(_WHOLE, [RADIX // 2] * _SIXTEEN)
        with cgutils.for_range(builder, vectors) as loop:
            whole = _whole(builder, x, loop.index, factor)
            above = builder.ashr(builder.add(whole, half), bits)
            below = builder.sub(whole, builder.shl(above, bits))
            for part, base, total in ((above, high, sums[0]), (below, low, sums[1])):
                _put(builder, part, base, loop.index)
                builder.store(builder.add(builder.load(total), part), total)
        builder.store(scale, _pointer(builder, out, _F32))
        for n, total in enumerate(sums):
            moved = builder.mul(reduce(builder, builder.load(total), builder.add), ir.Constant(_I32, -SHIFT8))
            builder.store(moved, _pointer(builder, builder.add(out, _number(4 + 4 * n)), _I32))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _sums(
    builder: Any, begin: Any, end: Any, heads: list[Any], half: Any, lines: Any, step: Any,
    meanwhile: Callable[[Any], None] | None = None,
) -> list[Any]:  # fmt: skip
    """For each head the sums over fours from `begin` to `end` of its numbers x those of a line in each lane, as floats.
    Heads are addresses of what `split` made, with `half` bytes of high ones; lines lie `step` bytes apart.
    """
    halves = [[builder.add(head, _number(HEAD)) for head in heads]]
    halves.append([builder.add(high, half) for high in halves[0]])
    totals = [[cgutils.alloca_once(builder, SUMS) for _ in heads] for _ in halves]
    for n, row in enumerate(totals):
        for head, total in zip(heads, row):
            shift = _at(builder, builder.add(head, _number(4 + 4 * n)), _I32, 4)
            builder.store(spread(builder, shift, SUMS), total)
    flat = [total for row in totals for total in row]
    with cgutils.for_range_slice(builder, begin, end, _number(1)) as (four, _):
        line = _at(builder, builder.add(lines, builder.mul(four, step)), BYTES, 1)
        place = builder.mul(four, _number(FOUR))
        asked = [
            builder.bitcast(spread(builder, _at(builder, builder.add(base, place), _I32, 4), SUMS), BYTES)
            for row in halves
            for base in row
        ]
        for total, new in zip(flat, signed(builder, [builder.load(total) for total in flat], line, asked)):
            builder.store(new, total)
        if meanwhile is not None:
            meanwhile(four)
    found, radix = [], ir.Constant(FLOATS, [float(RADIX)] * LANES)
    for high, low in zip(*totals):
        above, below = (builder.sitofp(builder.load(total), FLOATS) for total in (high, low))
        found.append(builder.fadd(builder.fmul(above, radix, flags=_CONTRACT), below, flags=_CONTRACT))
    return found


def _emit_scores(builder: Any, heads: int, args: Any) -> None:
    """`rounded_scores` for one number of heads."""
    queries, each, keys, scales, out, fours, seen, ahead, wanted = args
    addresses = [builder.add(queries, builder.mul(each, _number(h))) for h in range(heads)]
    half = builder.sdiv(builder.sub(each, _number(HEAD)), _number(2))
    size = BLOCK * FOUR  # of a line of all positions

    scales_ahead = builder.add(ahead, builder.mul(fours, _number(2 * size)))
    for n in range(2 * 4 * BLOCK // _LINE):
        call_for(builder, _pointer(builder, builder.add(scales_ahead, _number(_LINE * n)), _I8))

    def emit(part: int, meanwhile: Callable[[Any], None] | None) -> None:
        lines = builder.add(keys, _number(FOUR * LANES * part))
        found = _sums(builder, _number(0), fours, addresses, half, lines, _number(size), meanwhile)
        factor = _at(builder, builder.add(scales, _number(4 * LANES * part)), FLOATS, 4)
        for h, (address, value) in enumerate(zip(addresses, found)):
            scale = builder.fmul(factor, spread(builder, _at(builder, address, _F32, 4), FLOATS))
            place = builder.add(out, _number(4 * (h * BLOCK + LANES * part)))
            builder.store(builder.fmul(value, scale), _pointer(builder, place, FLOATS), align=4)

    emit(0, lambda four: call_for_block(builder, ahead, wanted, four, fours))
    for part in range(1, BLOCK // LANES):
        with builder.if_then(builder.icmp_signed(">", seen, _number(LANES * part))):
            emit(part, None)


def _emit_weigh(builder: Any, heads: int, args: Any) -> None:
    """`_weigh` for one number of heads."""
    weights, fades, begin, end, values, size, out, step = args
    addresses = [builder.add(weights, _number(h * (HEAD + 2 * BLOCK))) for h in range(heads)]
    factors = [spread(builder, _at(builder, address, _F32, 4), FLOATS) for address in addresses]
    faded = [_at(builder, builder.add(fades, _number(4 * h)), _F32, 4) for h in range(heads)]
    faded = [spread(builder, fade, FLOATS) for fade in faded]
    line = builder.mul(size, _number(FOUR))
    with cgutils.for_range(builder, builder.sdiv(size, _number(LANES))) as loop:
        start = builder.mul(loop.index, _number(4 * LANES))  # bytes of LANES floats, and of as many fours
        found = _sums(builder, begin, end, addresses, _number(BLOCK), builder.add(values, start), line)
        for h, value in enumerate(found):
            place = builder.add(builder.add(out, start), builder.mul(step, _number(4 * h)))
            pointer = _pointer(builder, place, FLOATS)
            old = builder.fmul(builder.load(pointer, align=4), faded[h], flags=_CONTRACT)
            new = builder.fadd(builder.fmul(value, factors[h], flags=_CONTRACT), old, flags=_CONTRACT)
            builder.store(new, pointer, align=4)


@intrinsic
def rounded_scores(
    typing: Any, heads: Any, queries: Any, each: Any, keys: Any, scales: Any, out: Any, fours: Any, seen: Any,
    ahead: Any, wanted: Any,
) -> Any:  # fmt: skip
    """out[h, t] = scale[t] query[h] . key[t] for up to HEADS heads and at least the `seen` first positions t of the
    block. Queries are what `split` made, of `each` bytes; there are so many `fours` of features.

    Meanwhile the block at `ahead` comes to the processor, of which so many positions are `wanted`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_scores, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        choose(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@intrinsic
def _weigh(
    typing: Any, heads: Any, weights: Any, fades: Any, begin: Any, end: Any, values: Any, size: Any, out: Any, step: Any
) -> Any:
    """`rounded_weigh` for features in whole vectors, of fours `begin` to `end` of positions."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_weigh, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        choose(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@compiled
def rounded_weigh(
    heads: int, weights: int, fades: int, begin: int, end: int, values: int, size: int, out: int, step: int
) -> None:
    """out[h] = fade[h] out[h] + the values of positions `begin` to `end` by their weights, BLOCK of each head as
    `split` makes them. Rows of `out` lie `step` numbers apart.
    """
    begin, end = begin // FOUR, (end + FOUR - 1) // FOUR
    _weigh(heads, weights, fades, begin, end, values, size, out, step)
    codes = i8(values)
    for h in range(heads):
        split_at = weights + h * (HEAD + 2 * BLOCK)
        y, fade, scale = f32(out + 4 * h * step), f32(fades)[h], f32(split_at)[0]
        high, low = i8(split_at + HEAD), i8(split_at + HEAD + BLOCK)
        for d in range(size // LANES * LANES, size):
            total = np.int32(0)
            for t in range(FOUR * begin, FOUR * end):
                weight = np.int32(RADIX) * np.int32(high[t]) + np.int32(low[t])
                total += weight * np.int32(codes[(t // FOUR * size + d) * FOUR + t % FOUR])
            y[d] = y[d] * fade + scale * np.float32(total)


@compiled
def _pad(x: int, size: int) -> None:
    numbers = f32(x)
    for d in range(size, padded(size)):
        numbers[d] = np.float32(0)


@compiled
def split_query(x: int, size: int, out: int) -> None:
    """`split` of numbers at x, where there is room for whole vectors."""
    _pad(x, size)
    split(x, padded(size) // _SIXTEEN, out)


@compiled
def keep_key(x: int, size: int, keys: int, slot: int) -> F32:
    """Write a key at its slot of a block; its scale. At x there is room for `rounding_bytes`."""
    codes = x + 4 * padded(size)
    _pad(x, size)
    scale = _round(x, padded(size) // _SIXTEEN, codes)
    fours, kept = i32(codes), i32(keys)
    for four in range((size + FOUR - 1) // FOUR):
        kept[four * BLOCK + slot] = fours[four]
    return scale


@compiled
def keep_value(x: int, size: int, values: int, slot: int) -> F32:
    """`keep_key` of a value."""
    codes = x + 4 * padded(size)
    _pad(x, size)
    scale = _round(x, padded(size) // _SIXTEEN, codes)
    numbers, kept = i8(codes), i8(values + slot // FOUR * size * FOUR + slot % FOUR)
    for d in range(size):
        kept[d * FOUR] = numbers[d]
    return scale


@compiled
def rounding_bytes(size: int) -> int:
    """What `keep_key` needs: the numbers in whole vectors, and their bytes."""
    return 5 * padded(size)
