"""Kernels over a block of keys and values: several query heads share each load.

Within a layer a block has, for each group, keys as [K, BLOCK], so that the scores of neighbouring positions are made
together, and values as [BLOCK, V]. In int8 the scales follow, [2, BLOCK]: a key is its scale x whole numbers, and so is
a value. Numbers are widened in registers, so what is multiplied is fp32 in either form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from headway.engine.machine import _F32, _I8, _I32, F32, compiled, exp, f32, i8, intrinsic
from headway.engine.operations import BLOCK
from headway.engine.tiles import FP32, INT8
from headway.engine.vectors import call_for, choose, exponentials_32, reduce, spread

FORMS: dict[str, int] = {"fp32": FP32, "int8": INT8}
HEADS = 4  # that are computed at once
LOWEST = np.float32(-3.0e38)  # below all scores
_LANES = 16
_WIDE = ir.VectorType(_F32, _LANES)
_PARTS = 2  # vectors of each head under way
_CHUNK = _PARTS * _LANES
_LINE = 64  # bytes that come from memory together


def block_bytes(form: int, groups: int, keys: int, values: int) -> int:
    """Of a layer, whose keys and values have so many numbers in each group."""
    size = 4 if form == FP32 else 1
    return groups * BLOCK * (size * (keys + values) + (0 if form == FP32 else 8))


def _at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), ir.VectorType(base.type.pointee, _LANES).as_pointer())


def _load(builder: Any, base: Any, offset: Any) -> Any:
    """A vector of fp32 from fp32 or int8."""
    found = builder.load(_at(builder, base, offset))
    found.align = 4 if base.type.pointee == _F32 else 1
    if base.type.pointee == _F32:
        return found
    return builder.sitofp(builder.sext(found, ir.VectorType(_I32, _LANES)), _WIDE)


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


def _emit_scores(builder: Any, form: int, heads: int, args: Any) -> None:
    """`scores` for one form and number of heads."""
    number = _F32 if form == FP32 else _I8
    lines = 2 * BLOCK * (4 if form == FP32 else 1) // _LINE  # of keys and values, for each feature
    word = lambda value: ir.Constant(args[0].type, value)  # noqa: E731
    kinds = (_F32, number, _F32, _F32)
    query, k, scale, y = (builder.inttoptr(arg, kind.as_pointer()) for arg, kind in zip(args, kinds))
    queries = [builder.gep(query, [builder.mul(args[4], word(h))]) for h in range(heads)]
    totals = _totals(builder, heads)
    _clear(builder, totals)
    with cgutils.for_range(builder, args[4]) as loop:
        start = builder.mul(loop.index, word(BLOCK))
        found = [_load(builder, k, builder.add(start, word(_LANES * part))) for part in range(_PARTS)]
        for asked, total in zip(queries, totals):
            value = spread(builder, builder.load(builder.gep(asked, [loop.index])), _WIDE)
            for part in range(_PARTS):
                _multiply_add(builder, total[part], found[part], value)
        line = builder.add(args[5], builder.mul(loop.index, word(_LINE * lines)))
        for n in range(lines):
            call_for(builder, builder.inttoptr(builder.add(line, word(_LINE * n)), _I8.as_pointer()))
    for h, total in enumerate(totals):
        for part in range(_PARTS):
            value = builder.load(total[part])
            if form != FP32:
                value = builder.fmul(value, _load(builder, scale, word(_LANES * part)))
            stored = builder.store(value, _at(builder, y, word(h * BLOCK + _LANES * part)))
            stored.align = 4


def _emit_weigh(builder: Any, form: int, heads: int, args: Any) -> None:
    """`_weigh` for one form and number of heads."""
    number = _F32 if form == FP32 else _I8
    word = lambda value: ir.Constant(args[0].type, value)  # noqa: E731
    w, fade, y = (builder.inttoptr(args[n], _F32.as_pointer()) for n in (0, 1, 6))
    v = builder.inttoptr(args[4], number.as_pointer())
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


def _each(builder: Any, emit: Callable[..., None], args: Any) -> None:
    """`emit` for the form and the number of heads that an intrinsic is called with, its first two arguments."""

    def of(form: int) -> None:
        counts = {heads: partial(emit, builder, form, heads, args[2:]) for heads in range(1, HEADS + 1)}
        choose(builder, args[1], counts)

    choose(builder, args[0], {form: partial(of, form) for form in (FP32, INT8)})


@intrinsic
def scores(typing: Any, form: Any, heads: Any, q: Any, keys: Any, scales: Any, out: Any, size: Any, ahead: Any) -> Any:
    """out[h, t] = scale[t] sum over d of q[h, d] keys[d, t], for up to HEADS heads, BLOCK positions t, features d up to
    `size`.

    Meanwhile what is at `ahead` comes to the processor, as many bytes as keys and values have here: blocks lie far
    apart, and are too short for the processor to foresee.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _each(builder, _emit_scores, args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@intrinsic
def _weigh(
    typing: Any, form: Any, heads: Any, weights: Any, fades: Any, begin: Any, end: Any, values: Any, size: Any,
    out: Any, step: Any,
) -> Any:  # fmt: skip
    """out[h, d] = fade[h] out[h, d] + sum over t from `begin` to `end` of weights[h, t] values[t, d], for features d up
    to `size` in twos of vectors. Weights of heads lie BLOCK apart, rows of `out` `step` numbers.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _each(builder, _emit_weigh, args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@compiled
def weigh(
    form: int, heads: int, weights: int, fades: int, begin: int, end: int, values: int, size: int, out: int, step: int
) -> None:
    """out[h] = fade[h] out[h] + the values of positions `begin` to `end` by their weights, [heads, BLOCK]. Rows of
    `out` lie `step` numbers apart.
    """
    _weigh(form, heads, weights, fades, begin, end, values, size, out, step)
    done = size // _CHUNK * _CHUNK
    for h in range(heads):
        w, y, fade = f32(weights + 4 * h * BLOCK), f32(out + 4 * h * step), f32(fades)[h]
        for d in range(done, size):
            y[d] *= fade
        for t in range(begin, end):
            for d in range(done, size):
                if form == FP32:
                    y[d] += w[t] * f32(values)[t * size + d]
                else:
                    y[d] += w[t] * np.float32(i8(values)[t * size + d])


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


@compiled
def soften(scores: int, begin: int, end: int, piece: int) -> F32:
    """Scores of positions `begin` to `end` of a block become weights in place, exp(score - maximum). The maximum and
    the sum, which a piece begins with, follow; returns by what former weights must be multiplied.
    """
    s, result = f32(scores), f32(piece)
    for t in range(begin):
        s[t] = LOWEST
    for t in range(end, BLOCK):
        s[t] = LOWEST
    top = max(result[0], _peak(scores))
    fade = exp(result[0] - top)
    total = exponentials_32(scores, top)
    result[0] = top
    result[1] = result[1] * fade + total
    return fade
