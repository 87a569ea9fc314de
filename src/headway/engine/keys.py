"""Kernels over a block of keys and values: several query heads share each load.

Within a layer a block has, for each group, keys as [K, BLOCK], so that the scores of neighbouring positions are made
together, and values as [BLOCK, V]. `rounded_keys` says what lies there in int8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, F32, cgutils, compiled, exp, f32, intrinsic, types
from headway.engine.operations import BLOCK
from headway.engine.tiles import FP32, INT8
from headway.engine.vectors import call_for, choose, exponentials_32, reduce, spread

FORMS: dict[str, int] = {"fp32": FP32, "int8": INT8}
HEADS = 4  # that are computed at once
LOWEST = np.float32(-3.0e38)  # below all scores
_LANES = 16
_WIDE = ir.VectorType(_F32, _LANES)
_PARTS = 2  # vectors of each head under way
HALF = BLOCK // 2  # positions that one of them has, and one line of what lies in a block
_CHUNK = _PARTS * _LANES
_LINE = 64  # bytes that come from memory together


def block_bytes(form: int, groups: int, keys: int, values: int) -> int:
    """Of a layer, whose keys and values have so many numbers in each group."""
    return groups * (key_bytes(form, keys) + value_bytes(form, values) + (0 if form == FP32 else 8 * BLOCK))


@compiled
def key_bytes(form: int, size: int) -> int:
    """Of a group's keys in a block: in int8 features lie four together."""
    return (4 * size if form == FP32 else (size + 3) // 4 * 4) * BLOCK


@compiled
def value_bytes(form: int, size: int) -> int:
    return (4 if form == FP32 else 1) * BLOCK * size


def _at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), ir.VectorType(base.type.pointee, _LANES).as_pointer())


def _load(builder: Any, base: Any, offset: Any) -> Any:
    return builder.load(_at(builder, base, offset), align=4)


def _multiply_add(builder: Any, total: Any, a: Any, b: Any) -> None:
    product = builder.fmul(a, b, flags=("contract",))
    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)


def _totals(builder: Any, heads: int, parts: int = _PARTS) -> list[list[Any]]:
    zero = ir.Constant(_WIDE, [0.0] * _LANES)
    return [[cgutils.alloca_once_value(builder, zero) for _ in range(parts)] for _ in range(heads)]


def _clear(builder: Any, totals: list[list[Any]]) -> None:
    for parts in totals:
        for total in parts:
            builder.store(ir.Constant(_WIDE, [0.0] * _LANES), total)


def call_for_block(builder: Any, ahead: Any, wanted: Any, index: Any, count: Any) -> None:
    """The part `index` of `count` of bringing a group's keys and values near that begin at `ahead`: of its first
    positions alone, where no more of them than half of the block are `wanted`.

    Blocks lie far apart, and are too short for the processor to foresee. In each part keys have a line for each half
    of the positions, whatever their form, and so have values.
    """
    word = partial(ir.Constant, ahead.type)
    half = builder.mul(count, word(_LINE))  # bytes of the values of half of the positions
    keys = builder.add(ahead, builder.mul(index, word(2 * _LINE)))
    values = builder.add(builder.add(ahead, builder.mul(half, word(2))), builder.mul(index, word(_LINE)))

    def call(place: Any) -> None:
        call_for(builder, builder.inttoptr(place, _I8.as_pointer()))

    call(keys)
    call(values)
    with builder.if_then(builder.icmp_signed(">", wanted, word(HALF))):
        call(builder.add(keys, word(_LINE)))
        call(builder.add(values, half))


def _emit_scores(builder: Any, heads: int, parts: int, args: Any) -> None:
    """`scores` for one number of heads, and of vectors of positions."""
    word = lambda value: ir.Constant(args[0].type, value)  # noqa: E731
    query, k, y = (builder.inttoptr(arg, _F32.as_pointer()) for arg in args[:3])
    _, _, _, size, ahead, wanted = args
    queries = [builder.gep(query, [builder.mul(size, word(h))]) for h in range(heads)]
    totals = _totals(builder, heads, parts)
    _clear(builder, totals)
    with cgutils.for_range(builder, size) as loop:
        start = builder.mul(loop.index, word(BLOCK))
        found = [_load(builder, k, builder.add(start, word(_LANES * part))) for part in range(parts)]
        for asked, total in zip(queries, totals):
            value = spread(builder, builder.load(builder.gep(asked, [loop.index])), _WIDE)
            for one, keys in zip(total, found):
                _multiply_add(builder, one, keys, value)
        call_for_block(builder, ahead, wanted, loop.index, size)
    for h, total in enumerate(totals):
        for part, one in enumerate(total):
            builder.store(builder.load(one), _at(builder, y, word(h * BLOCK + _LANES * part)), align=4)


def _emit_weigh(builder: Any, heads: int, args: Any) -> None:
    """`_weigh` for one number of heads."""
    word = lambda value: ir.Constant(args[0].type, value)  # noqa: E731
    w, fade, v, y = (builder.inttoptr(args[n], _F32.as_pointer()) for n in (0, 1, 4, 6))
    totals = _totals(builder, heads)
    with cgutils.for_range(builder, builder.sdiv(args[5], word(_CHUNK))) as outer:
        first = builder.mul(outer.index, word(_CHUNK))
        _clear(builder, totals)
        with cgutils.for_range_slice(builder, args[2], args[3], word(1)) as (t, _):
            start = builder.add(first, builder.mul(t, args[5]))
            found = [_load(builder, v, builder.add(start, word(_LANES * part))) for part in range(_PARTS)]
            for h, total in enumerate(totals):
                weight = spread(builder, builder.load(builder.gep(w, [builder.add(t, word(h * BLOCK))])), _WIDE)
                for part in range(_PARTS):
                    _multiply_add(builder, total[part], found[part], weight)
        for h, total in enumerate(totals):
            row = builder.add(first, builder.mul(args[7], word(h)))
            faded = spread(builder, builder.load(builder.gep(fade, [word(h)])), _WIDE)
            for part in range(_PARTS):
                offset = builder.add(row, word(_LANES * part))
                old = builder.fmul(_load(builder, y, offset), faded, flags=("contract",))
                new = builder.fadd(old, builder.load(total[part]), flags=("contract",))
                stored = builder.store(new, _at(builder, y, offset))
                stored.align = 4


@intrinsic
def scores(typing: Any, heads: Any, q: Any, keys: Any, out: Any, size: Any, seen: Any, ahead: Any, wanted: Any) -> Any:
    """out[h, t] = sum over d of q[h, d] keys[d, t], for up to HEADS heads, features d up to `size`, and positions t of
    the block: all, or the first half, where no more are `seen`.

    Meanwhile the block at `ahead` comes to the processor, of which so many positions are `wanted`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        heads, q, keys, out, size, seen, ahead, wanted = args
        cases = {
            2 * count + parts: partial(_emit_scores, builder, count, parts, (q, keys, out, size, ahead, wanted))
            for count in range(1, HEADS + 1)
            for parts in (1, _PARTS)
        }
        beyond = builder.icmp_signed(">", seen, ir.Constant(seen.type, HALF))
        parts = builder.select(beyond, *(ir.Constant(heads.type, parts) for parts in (_PARTS, 1)))
        choose(builder, builder.add(builder.mul(heads, ir.Constant(heads.type, 2)), parts), cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@intrinsic
def _weigh(
    typing: Any, heads: Any, weights: Any, fades: Any, begin: Any, end: Any, values: Any, size: Any, out: Any, step: Any
) -> Any:
    """out[h, d] = fade[h] out[h, d] + sum over t from `begin` to `end` of weights[h, t] values[t, d], for features d up
    to `size` in twos of vectors. Weights of heads lie BLOCK apart, rows of `out` `step` numbers.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_weigh, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        choose(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@compiled
def weigh(
    heads: int, weights: int, fades: int, begin: int, end: int, values: int, size: int, out: int, step: int
) -> None:
    """out[h] = fade[h] out[h] + the values of positions `begin` to `end` by their weights, [heads, BLOCK]. Rows of
    `out` lie `step` numbers apart.
    """
    _weigh(heads, weights, fades, begin, end, values, size, out, step)
    done = size // _CHUNK * _CHUNK
    for h in range(heads):
        w, y, fade = f32(weights + 4 * h * BLOCK), f32(out + 4 * h * step), f32(fades)[h]
        for d in range(done, size):
            y[d] *= fade
        for t in range(begin, end):
            for d in range(done, size):
                y[d] += w[t] * f32(values)[t * size + d]


@intrinsic
def _peak(typing: Any, numbers: Any) -> Any:
    """The largest of BLOCK numbers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = builder.inttoptr(args[0], _F32.as_pointer())
        parts = [_load(builder, base, ir.Constant(args[0].type, _LANES * n)) for n in range(BLOCK // _LANES)]
        while len(parts) > 1:
            parts = [_larger(builder, *parts[n : n + 2]) for n in range(0, len(parts), 2)]
        return reduce(builder, parts[0], lambda low, high: _larger(builder, low, high))

    return types.float32(types.int64), generate


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def put_outside(typing: Any, numbers: Any, begin: Any, end: Any, other: Any) -> Any:
    """`other` in place of those of BLOCK numbers that do not lie from `begin` to `end`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, *bounds, other = args
        base = builder.inttoptr(numbers, _F32.as_pointer())
        places = ir.VectorType(_I32, _LANES)
        begin, end = (spread(builder, builder.trunc(bound, _I32), places) for bound in bounds)
        for start in range(0, BLOCK, _LANES):
            here = ir.Constant(places, list(range(start, start + _LANES)))
            inside = builder.and_(builder.icmp_signed(">=", here, begin), builder.icmp_signed("<", here, end))
            place = _at(builder, base, ir.Constant(numbers.type, start))
            kept = builder.select(inside, builder.load(place, align=4), spread(builder, other, _WIDE))
            builder.store(kept, place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


@compiled
def soften(scores: int, begin: int, end: int, piece: int) -> F32:
    """Scores of positions `begin` to `end` of a block become weights in place, exp(score - maximum). The maximum and
    the sum, which a piece begins with, follow; returns by what former weights must be multiplied.
    """
    result = f32(piece)
    put_outside(scores, begin, end, LOWEST)
    top = max(result[0], _peak(scores))
    fade = exp(result[0] - top)
    total = exponentials_32(scores, top)
    result[0] = top
    result[1] = result[1] * fade + total
    return fade
