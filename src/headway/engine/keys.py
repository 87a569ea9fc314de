"""Kernels over a block of keys and values: several query heads share each load.

Within a layer a block has, for each group, keys as [K, BLOCK], so that the scores of neighbouring positions are made
together, and values as [BLOCK, V]. `rounded_keys` says what lies there in int8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

from headway.engine.machine import _F32, _I8, cgutils, compiled, f32, intrinsic, types
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.tiles import FP32, INT8
from headway.engine.vectors import call_for, choose, spread

FORMS: dict[str, int] = {"fp32": FP32, "int8": INT8}
HEADS = 4  # that are computed at once
_LANES = 16
_WIDE = ir.VectorType(_F32, _LANES)
_PARTS = 2  # vectors of each head under way
_COLUMNS = _PARTS * _LANES
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


def _totals(builder: Any, heads: int) -> list[list[Any]]:
    zero = ir.Constant(_WIDE, [0.0] * _LANES)
    return [[cgutils.alloca_once_value(builder, zero) for _ in range(_PARTS)] for _ in range(heads)]


def _clear(builder: Any, totals: list[list[Any]]) -> None:
    for parts in totals:
        for total in parts:
            builder.store(ir.Constant(_WIDE, [0.0] * _LANES), total)


def _emit_scores(builder: Any, heads: int, args: Any) -> None:
    """`scores` for one number of heads."""
    lines = BLOCK * 4 // _LINE  # of keys, for each feature
    word = lambda value: ir.Constant(args[0].type, value)  # noqa: E731
    query, k, y = (builder.inttoptr(arg, _F32.as_pointer()) for arg in args[:3])
    queries = [builder.gep(query, [builder.mul(args[3], word(h))]) for h in range(heads)]
    totals = _totals(builder, heads)
    _clear(builder, totals)
    with cgutils.for_range(builder, args[3]) as loop:
        start = builder.mul(loop.index, word(BLOCK))
        found = [_load(builder, k, builder.add(start, word(_LANES * part))) for part in range(_PARTS)]
        for asked, total in zip(queries, totals):
            value = spread(builder, builder.load(builder.gep(asked, [loop.index])), _WIDE)
            for part in range(_PARTS):
                _multiply_add(builder, total[part], found[part], value)
        line = builder.add(args[4], builder.mul(loop.index, word(_LINE * lines)))
        for n in range(lines):
            call_for(builder, builder.inttoptr(builder.add(line, word(_LINE * n)), _I8.as_pointer()))
    for h, total in enumerate(totals):
        for part in range(_PARTS):
            builder.store(builder.load(total[part]), _at(builder, y, word(h * CHUNK + _LANES * part)), align=4)


def _emit_weigh(builder: Any, heads: int, args: Any) -> None:
    """`_weigh` for one number of heads."""
    word = lambda value: ir.Constant(args[0].type, value)  # noqa: E731
    weights, fades, begin, end, near, far, ahead_near, ahead_far, size, out, step = args
    w, fade, y = (builder.inttoptr(address, _F32.as_pointer()) for address in (weights, fades, out))
    blocks = [
        (0, *halves(builder, begin, end, 0), near, ahead_near),
        (1, *halves(builder, begin, end, 1), far, ahead_far),
    ]
    totals = _totals(builder, heads)
    with cgutils.for_range(builder, builder.sdiv(size, word(_COLUMNS))) as outer:
        first = builder.mul(outer.index, word(_COLUMNS))
        _clear(builder, totals)
        for number, low, high, values, ahead in blocks:
            v = builder.inttoptr(values, _F32.as_pointer())
            with cgutils.for_range_slice(builder, low, high, word(1)) as (t, _):
                start = builder.add(first, builder.mul(t, size))
                found = [_load(builder, v, builder.add(start, word(_LANES * part))) for part in range(_PARTS)]
                for h, total in enumerate(totals):
                    place = builder.add(t, word(h * CHUNK + number * BLOCK))
                    weight = spread(builder, builder.load(builder.gep(w, [place])), _WIDE)
                    for part in range(_PARTS):
                        _multiply_add(builder, total[part], found[part], weight)
                line = builder.add(ahead, builder.mul(start, word(4)))
                for n in range(4 * _COLUMNS // _LINE):
                    call_for(builder, builder.inttoptr(builder.add(line, word(_LINE * n)), _I8.as_pointer()))
        for h, total in enumerate(totals):
            row = builder.add(first, builder.mul(step, word(h)))
            faded = spread(builder, builder.load(builder.gep(fade, [word(h)])), _WIDE)
            for part in range(_PARTS):
                offset = builder.add(row, word(_LANES * part))
                old = builder.fmul(_load(builder, y, offset), faded, flags=("contract",))
                new = builder.fadd(old, builder.load(total[part]), flags=("contract",))
                stored = builder.store(new, _at(builder, y, offset))
                stored.align = 4


def halves(builder: Any, begin: Any, end: Any, number: int) -> tuple[Any, Any]:
    """Of positions `begin` to `end` of a chunk those in its first (0) or second (1) block, counted from there."""
    zero, block = ir.Constant(begin.type, 0), ir.Constant(begin.type, BLOCK)

    def within(place: Any) -> Any:
        place = builder.sub(place, ir.Constant(begin.type, number * BLOCK))
        place = builder.select(builder.icmp_signed("<", place, zero), zero, place)
        return builder.select(builder.icmp_signed(">", place, block), block, place)

    return within(begin), within(end)


@intrinsic
def scores(typing: Any, heads: Any, q: Any, keys: Any, out: Any, size: Any, ahead: Any) -> Any:
    """out[h, t] = sum over d of q[h, d] keys[d, t], for up to HEADS heads, BLOCK positions t, features d up to `size`.
    Rows of `out` lie CHUNK numbers apart.

    Meanwhile keys at `ahead` come to the processor: blocks lie far apart, and are too short for it to foresee.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_scores, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        choose(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def _weigh(
    typing: Any, heads: Any, weights: Any, fades: Any, begin: Any, end: Any, near: Any, far: Any, ahead_near: Any,
    ahead_far: Any, size: Any, out: Any, step: Any,
) -> Any:  # fmt: skip
    """`weigh` for features up to `size` in twos of vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cases = {count: partial(_emit_weigh, builder, count, args[1:]) for count in range(1, HEADS + 1)}
        choose(builder, args[0], cases)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), generate


@compiled
def weigh(
    heads: int, weights: int, fades: int, begin: int, end: int, near: int, far: int, ahead_near: int, ahead_far: int,
    size: int, out: int, step: int,
) -> None:  # fmt: skip
    """out[h, d] = fade[h] out[h, d] + sum over t from `begin` to `end` of weights[h, t] values[t, d], of a chunk whose
    first values are at `near` and others at `far`. Weights of heads lie CHUNK apart, rows of `out` `step` numbers.

    Meanwhile values at `ahead_near` and `ahead_far` come to the processor.
    """
    _weigh(heads, weights, fades, begin, end, near, far, ahead_near, ahead_far, size, out, step)
    done = size // _COLUMNS * _COLUMNS
    for h in range(heads):
        w, y, fade = f32(weights + 4 * h * CHUNK), f32(out + 4 * h * step), f32(fades)[h]
        for d in range(done, size):
            y[d] *= fade
        for t in range(begin, end):
            values, place = f32(near if t < BLOCK else far), t % BLOCK * size
            for d in range(done, size):
                y[d] += w[t] * values[place + d]
