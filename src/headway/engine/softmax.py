"""Softmax over a chunk of positions in one pass: exp(score - maximum), 0 where a query sees nothing.

When the maximum grows, the results of earlier chunks are all multiplied by the same factor (Milakov and Gimelshein
2018).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, cgutils, compiled, f32, intrinsic, types
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.vectors import call, constant, exponential, folded, fused, reduce, spread, word

LOWEST = np.float32(-3.0e38)  # below all scores
RADIX_BITS = 7  # of integers as two bytes
RADIX = 1 << RADIX_BITS
MOST = 127 * RADIX  # the largest of them
_SIXTEEN = 16
_NUMBERS, _WHOLE, _CODES = (ir.VectorType(kind, _SIXTEEN) for kind in (_F32, _I32, _I8))
_PARTS = CHUNK // _SIXTEEN


class _Softened(NamedTuple):
    """Code for the weights of a chunk, sixteen at a time, and the factor for earlier results."""

    weights: list[Any]
    seen: list[Any]
    fade: Any


def _at(builder: Any, address: Any, offset: int, kind: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, word(offset)), kind.as_pointer())


def _load(builder: Any, address: Any, part: int) -> Any:
    """The next sixteen floats."""
    return builder.load(_at(builder, address, 4 * _SIXTEEN * part, _NUMBERS), align=4)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _emit(builder: Any, scores: Any, begin: Any, end: Any, piece: Any) -> _Softened:
    lanes = [ir.Constant(_WHOLE, [_SIXTEEN * part + i for i in range(_SIXTEEN)]) for part in range(_PARTS)]
    bounds = [spread(builder, builder.trunc(bound, _I32), _WHOLE) for bound in (begin, end)]
    seen = [
        builder.and_(builder.icmp_signed(">=", lane, bounds[0]), builder.icmp_signed("<", lane, bounds[1]))
        for lane in lanes
    ]
    nothing, zero = constant(_NUMBERS, float(LOWEST)), constant(_NUMBERS, 0.0)
    found = [builder.select(mask, _load(builder, scores, part), nothing) for part, mask in enumerate(seen)]
    larger = partial(_larger, builder)
    before, summed = (_at(builder, piece, 4 * n, _F32) for n in range(2))
    old = builder.load(before)
    top = larger(reduce(builder, folded(found, larger), larger), old)
    most = spread(builder, top, _NUMBERS)
    powers = [exponential(builder, builder.fsub(value, most)) for value in found]
    weights = [builder.select(mask, power, zero) for mask, power in zip(seen, powers)]
    total = reduce(builder, folded(weights, builder.fadd), builder.fadd)
    faded = exponential(builder, spread(builder, builder.fsub(old, top), _NUMBERS))
    fade = builder.extract_element(faded, ir.Constant(_I32, 0))
    builder.store(top, before)
    builder.store(fused(builder, builder.load(summed), fade, total), summed)
    return _Softened(weights, seen, fade)


@intrinsic
def soften(typing: Any, scores: Any, begin: Any, end: Any, piece: Any) -> Any:
    """Turn CHUNK scores into weights in place, for positions `start` to `end`. Updates the maximum and the sum, at the
    start of `accumulator`; returns the factor for earlier results.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = _emit(builder, *args)
        for part, weight in enumerate(made.weights):
            builder.store(weight, _at(builder, args[0], 4 * _SIXTEEN * part, _NUMBERS), align=4)
        return made.fade

    return types.float32(*[types.int64] * 4), generate


@intrinsic
def soften_rounded(
    typing: Any, scores: Any, begin: Any, end: Any, piece: Any, near: Any, far: Any, out: Any, codes: Any
) -> Any:
    """`softmax_chunk` with weights x scales of values (BLOCK at `near` and at `far`) as integers: at `out` a scale, at
    `codes` CHUNK bytes and then CHUNK more; value = scale (RADIX first + second), both below RADIX. NaN makes the scale
    NaN.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores, begin, end, piece, near, far, out, codes = args
        made = _emit(builder, scores, begin, end, piece)
        zero, half = constant(_NUMBERS, 0.0), BLOCK // _SIXTEEN
        scales = [_load(builder, base, part) for base in (near, far) for part in range(half)]
        scaled = [
            builder.select(mask, builder.fmul(weight, scale), zero)
            for mask, weight, scale in zip(made.seen, made.weights, scales)
        ]

        def above(a: Any, b: Any) -> Any:  # compared as bits, NaN is larger than any nonnegative number
            return builder.select(builder.icmp_unsigned(">", a, b), a, b)

        sizes = constant(_WHOLE, 0x7FFFFFFF)
        bits = [builder.and_(builder.bitcast(value, _WHOLE), sizes) for value in scaled]
        largest = builder.bitcast(reduce(builder, folded(bits, above), above), _F32)
        most, nought = ir.Constant(_F32, float(MOST)), ir.Constant(_F32, 0.0)
        factor = builder.select(builder.fcmp_ordered(">", largest, nought), builder.fdiv(most, largest), nought)
        builder.store(builder.fdiv(largest, most), builder.inttoptr(out, _F32.as_pointer()))
        moved, low = (constant(_WHOLE, value) for value in (RADIX_BITS, RADIX - 1))
        factors = spread(builder, factor, _NUMBERS)
        for part, value in enumerate(scaled):
            whole = builder.fptosi(call(builder, "rint.v16f32", _NUMBERS, builder.fmul(value, factors)), _WHOLE)
            for place, code in ((0, builder.lshr(whole, moved)), (CHUNK, builder.and_(whole, low))):
                at = _at(builder, codes, place + _SIXTEEN * part, _CODES)
                builder.store(builder.trunc(code, _CODES), at, align=1)
        return made.fade

    return types.float32(*[types.int64] * 8), generate


@compiled
def nothing(piece: int, size: int) -> None:
    """Clear a partial result: its maximum, its sum, and the weighted values."""
    result = f32(piece)
    result[0], result[1] = LOWEST, np.float32(0)
    for d in range(size):
        result[2 + d] = np.float32(0)


@intrinsic
def dot(typing: Any, a: Any, b: Any, vectors: Any) -> Any:
    """The dot product of so many times sixteen floats."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = cgutils.alloca_once(builder, _NUMBERS)
        builder.store(constant(_NUMBERS, 0.0), total)
        with cgutils.for_range(builder, args[2]) as loop:
            step = builder.mul(loop.index, word(4 * _SIXTEEN))
            one, other = (_load(builder, builder.add(base, step), 0) for base in args[:2])
            builder.store(fused(builder, one, other, builder.load(total)), total)
        return reduce(builder, builder.load(total), builder.fadd)

    return types.float32(*[types.int64] * 3), generate
