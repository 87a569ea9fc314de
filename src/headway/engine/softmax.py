"""Softmax over a chunk of positions in one pass: exp(score - maximum), 0 where a query sees nothing.

When the maximum grows, the results of earlier chunks are all multiplied by the same factor (Milakov and Gimelshein
2018).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.engine.codegen import F32, I32, Float, Int, Value, add, constant, fold_halves, kernel, larger
from headway.engine.machine import compiled, f32
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.vectors import BYTES, FLOATS, INTEGERS, LANES, exponential

LOWEST = np.float32(-3.0e38)  # below all scores
RADIX_BITS = 7  # of integers as two bytes
RADIX = 1 << RADIX_BITS
MAX_CODE = 127 * RADIX  # the largest of them
_PARTS = CHUNK // LANES


class _ChunkWeights(NamedTuple):
    """The weights of a chunk, sixteen at a time, and the factor for earlier results."""

    weights: list[Value]
    visible: list[Value]
    rescale: Value


def _parts(address: Value, count: int) -> list[Value]:
    """The addresses of neighbouring sixteens of floats."""
    return [address + 4 * LANES * part for part in range(count)]


def _softmax(scores: Value, start: Value, end: Value, accumulator: Value) -> _ChunkWeights:
    lanes = [constant(INTEGERS, [LANES * part + i for i in range(LANES)]) for part in range(_PARTS)]
    first, last = (bound.to(I32, "trunc").broadcast(INTEGERS) for bound in (start, end))
    visible = [(lane >= first) & (lane < last) for lane in lanes]
    masked = [
        mask.select(part.load(FLOATS, align=4), float(LOWEST)) for mask, part in zip(visible, _parts(scores, _PARTS))
    ]
    before, summed = accumulator.at(F32), (accumulator + 4).at(F32)
    old = before.load()
    top = larger(fold_halves(masked, larger).reduce(larger), old)
    maximum = top.broadcast(FLOATS)
    powers = [exponential(score - maximum) for score in masked]
    weights = [mask.select(power, 0.0) for mask, power in zip(visible, powers)]
    total = fold_halves(weights, add).reduce(add)
    rescale = exponential((old - top).broadcast(FLOATS))[0]
    before.store(top)
    summed.store(summed.load().multiply_add(rescale, total))
    return _ChunkWeights(weights, visible, rescale)


@kernel
def softmax_chunk(scores: Int, start: Int, end: Int, accumulator: Int) -> Float:
    """Turn CHUNK scores into weights in place, for positions `start` to `end`. Updates the maximum and the sum, at the
    start of `accumulator`; returns the factor for earlier results.
    """
    chunk = _softmax(scores, start, end, accumulator)
    for weight, target in zip(chunk.weights, _parts(scores, _PARTS)):
        target.store(weight, align=4)
    return chunk.rescale


@kernel
def softmax_chunk_int8(
    scores: Int, start: Int, end: Int, accumulator: Int, near: Int, far: Int, out: Int, codes: Int
) -> Float:
    """`softmax_chunk` with weights x scales of values (BLOCK at `near` and at `far`) as integers: at `out` a scale, at
    `codes` CHUNK bytes and then CHUNK more; value = scale (RADIX first + second), both below RADIX. NaN makes the scale
    NaN.
    """
    chunk = _softmax(scores, start, end, accumulator)
    scales = [part.load(FLOATS, align=4) for base in (near, far) for part in _parts(base, BLOCK // LANES)]
    scaled = [mask.select(weight * scale, 0.0) for mask, weight, scale in zip(chunk.visible, chunk.weights, scales)]

    def above(a: Value, b: Value) -> Value:  # compared as bits, NaN is larger than any nonnegative number
        return a.above(b).select(a, b)

    bits = [value.to(INTEGERS) & 0x7FFFFFFF for value in scaled]
    largest = fold_halves(bits, above).reduce(above).to(F32)
    factor = (largest > 0.0).select(float(MAX_CODE) / largest, 0.0)
    out.store(largest / float(MAX_CODE))
    factors = factor.broadcast(FLOATS)
    for part, value in enumerate(scaled):
        integers = (value * factors).apply("rint").to(INTEGERS, "fptosi")
        for offset, code in ((0, integers.shift_unsigned(RADIX_BITS)), (CHUNK, integers & RADIX - 1)):
            (codes + (offset + LANES * part)).store(code.to(BYTES, "trunc"), align=1)
    return chunk.rescale


@compiled
def clear_partial(accumulator: int, size: int) -> None:
    """Clear a partial result: its maximum, its sum, and the weighted values."""
    values = f32(accumulator)
    values[0], values[1] = LOWEST, np.float32(0)
    for d in range(size):
        values[2 + d] = np.float32(0)
