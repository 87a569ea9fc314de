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
from headway.engine.vectors import broadcast, call, constant, exponential, fold_halves, multiply_add, reduce, word

LOWEST = np.float32(-3.0e38)  # below all scores
RADIX_BITS = 7  # of integers as two bytes
RADIX = 1 << RADIX_BITS
MAX_CODE = 127 * RADIX  # the largest of them
_SIXTEEN = 16
_FLOATS, _INTEGERS, _CODES = (ir.VectorType(kind, _SIXTEEN) for kind in (_F32, _I32, _I8))
_PARTS = CHUNK // _SIXTEEN


class _ChunkWeights(NamedTuple):
    """Code for the weights of a chunk, sixteen at a time, and the factor for earlier results."""

    weights: list[Any]
    visible: list[Any]
    rescale: Any


def _at(builder: Any, address: Any, offset: int, kind: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, word(offset)), kind.as_pointer())


def _load(builder: Any, address: Any, part: int) -> Any:
    """The next sixteen floats."""
    return builder.load(_at(builder, address, 4 * _SIXTEEN * part, _FLOATS), align=4)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _emit(builder: Any, scores: Any, start: Any, end: Any, accumulator: Any) -> _ChunkWeights:
    lanes = [ir.Constant(_INTEGERS, [_SIXTEEN * part + i for i in range(_SIXTEEN)]) for part in range(_PARTS)]
    bounds = [broadcast(builder, builder.trunc(bound, _I32), _INTEGERS) for bound in (start, end)]
    visible = [
        builder.and_(builder.icmp_signed(">=", lane, bounds[0]), builder.icmp_signed("<", lane, bounds[1]))
        for lane in lanes
    ]
    lowest, zero = constant(_FLOATS, float(LOWEST)), constant(_FLOATS, 0.0)
    masked = [builder.select(mask, _load(builder, scores, part), lowest) for part, mask in enumerate(visible)]
    larger = partial(_larger, builder)
    before, summed = (_at(builder, accumulator, 4 * n, _F32) for n in range(2))
    old = builder.load(before)
    top = larger(reduce(builder, fold_halves(masked, larger), larger), old)
    maximum = broadcast(builder, top, _FLOATS)
    powers = [exponential(builder, builder.fsub(score, maximum)) for score in masked]
    weights = [builder.select(mask, power, zero) for mask, power in zip(visible, powers)]
    total = reduce(builder, fold_halves(weights, builder.fadd), builder.fadd)
    rescales = exponential(builder, broadcast(builder, builder.fsub(old, top), _FLOATS))
    rescale = builder.extract_element(rescales, ir.Constant(_I32, 0))
    builder.store(top, before)
    builder.store(multiply_add(builder, builder.load(summed), rescale, total), summed)
    return _ChunkWeights(weights, visible, rescale)


@intrinsic
def softmax_chunk(typing: Any, scores: Any, start: Any, end: Any, accumulator: Any) -> Any:
    """Turn CHUNK scores into weights in place, for positions `start` to `end`. Updates the maximum and the sum, at the
    start of `accumulator`; returns the factor for earlier results.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        chunk = _emit(builder, *args)
        for part, weight in enumerate(chunk.weights):
            builder.store(weight, _at(builder, args[0], 4 * _SIXTEEN * part, _FLOATS), align=4)
        return chunk.rescale

    return types.float32(*[types.int64] * 4), generate


@intrinsic
def softmax_chunk_int8(
    typing: Any, scores: Any, start: Any, end: Any, accumulator: Any, near: Any, far: Any, out: Any, codes: Any
) -> Any:
    """`softmax_chunk` with weights x scales of values (BLOCK at `near` and at `far`) as integers: at `out` a scale, at
    `codes` CHUNK bytes and then CHUNK more; value = scale (RADIX first + second), both below RADIX. NaN makes the scale
    NaN.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores, start, end, accumulator, near, far, out, codes = args
        chunk = _emit(builder, scores, start, end, accumulator)
        zero, half = constant(_FLOATS, 0.0), BLOCK // _SIXTEEN
        scales = [_load(builder, base, part) for base in (near, far) for part in range(half)]
        scaled = [
            builder.select(mask, builder.fmul(weight, scale), zero)
            for mask, weight, scale in zip(chunk.visible, chunk.weights, scales)
        ]

        def above(a: Any, b: Any) -> Any:  # compared as bits, NaN is larger than any nonnegative number
            return builder.select(builder.icmp_unsigned(">", a, b), a, b)

        sizes = constant(_INTEGERS, 0x7FFFFFFF)
        bits = [builder.and_(builder.bitcast(value, _INTEGERS), sizes) for value in scaled]
        largest = builder.bitcast(reduce(builder, fold_halves(bits, above), above), _F32)
        max_code, scalar_zero = ir.Constant(_F32, float(MAX_CODE)), ir.Constant(_F32, 0.0)
        factor = builder.select(
            builder.fcmp_ordered(">", largest, scalar_zero), builder.fdiv(max_code, largest), scalar_zero
        )
        builder.store(builder.fdiv(largest, max_code), builder.inttoptr(out, _F32.as_pointer()))
        moved, low = (constant(_INTEGERS, value) for value in (RADIX_BITS, RADIX - 1))
        factors = broadcast(builder, factor, _FLOATS)
        for part, value in enumerate(scaled):
            integers = builder.fptosi(call(builder, "rint.v16f32", _FLOATS, builder.fmul(value, factors)), _INTEGERS)
            for offset, code in ((0, builder.lshr(integers, moved)), (CHUNK, builder.and_(integers, low))):
                at = _at(builder, codes, offset + _SIXTEEN * part, _CODES)
                builder.store(builder.trunc(code, _CODES), at, align=1)
        return chunk.rescale

    return types.float32(*[types.int64] * 8), generate


@compiled
def clear_partial(accumulator: int, size: int) -> None:
    """Clear a partial result: its maximum, its sum, and the weighted values."""
    values = f32(accumulator)
    values[0], values[1] = LOWEST, np.float32(0)
    for d in range(size):
        values[2 + d] = np.float32(0)


@intrinsic
def dot(typing: Any, a: Any, b: Any, vectors: Any) -> Any:
    """The dot product of this many times sixteen floats."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = cgutils.alloca_once(builder, _FLOATS)
        builder.store(constant(_FLOATS, 0.0), total)
        with cgutils.for_range(builder, args[2]) as loop:
            step = builder.mul(loop.index, word(4 * _SIXTEEN))
            x, y = (_load(builder, builder.add(base, step), 0) for base in args[:2])
            builder.store(multiply_add(builder, x, y, builder.load(total)), total)
        return reduce(builder, builder.load(total), builder.fadd)

    return types.float32(*[types.int64] * 3), generate
