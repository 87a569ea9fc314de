"""Attention of one new token a row over keys and values that lie in blocks.

A block has BLOCK positions of all layers. Within a layer it holds keys as [G, K, BLOCK], so that the scores of
neighbouring positions are made together, then values as [G, BLOCK, K]. A row's table lists the addresses of its blocks.
Long contexts are cut into `splits` pieces that threads work on at once, each with its own maximum and sum
(Milakov and Gimelshein 2018; Dao et al. 2023), and joined afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from headway.engine.machine import _F32, _I32, F32, compiled, exp, f32, i64, intrinsic
from headway.engine.operations import BLOCK, norm_row, tanh

_F16 = ir.VectorType(_F32, 16)
_LOWEST = np.float32(-3.0e38)


def _spread(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_F16, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(_F16, ir.Undefined), ir.Constant(ir.VectorType(_I32, 16), [0] * 16))


def _vector(builder: Any, base: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), _F16.as_pointer())


@intrinsic
def scores(typing: Any, q: Any, keys: Any, out: Any, size: Any) -> Any:
    """out[t] = sum over d of q[d] keys[d, t], for BLOCK positions t and `size` features d."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        query, k, y = (builder.inttoptr(arg, _F32.as_pointer()) for arg in args[:3])
        zero = ir.Constant(_F16, [0.0] * 16)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(BLOCK // 16)]
        for total in sums:
            builder.store(zero, total)
        with cgutils.for_range(builder, args[3]) as loop:
            number = _spread(builder, builder.load(builder.gep(query, [loop.index])))
            start = builder.mul(loop.index, ir.Constant(loop.index.type, BLOCK))
            for part, total in enumerate(sums):
                at = _vector(builder, k, builder.add(start, ir.Constant(start.type, 16 * part)))
                key = builder.load(at)
                key.align = 4
                product = builder.fmul(key, number, flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        for part, total in enumerate(sums):
            stored = builder.store(builder.load(total), _vector(builder, y, ir.Constant(args[3].type, 16 * part)))
            stored.align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@compiled
def turn(x: int, cos: int, sin: int, half: int) -> None:
    """Rotary positions on the first 2 `half` features."""
    v, c, s = f32(x), f32(cos), f32(sin)
    for d in range(half):
        a, b = v[d], v[half + d]
        v[d] = a * c[d] - b * s[d]
        v[half + d] = b * c[d] + a * s[d]


@compiled
def keep(key: int, value: int, block: int, group: int, groups: int, size: int, slot: int) -> None:
    """Write a key and a value at their place in a block."""
    keys = f32(block + 4 * group * size * BLOCK)
    values = f32(block + 4 * (groups + group) * size * BLOCK)
    k, v = f32(key), f32(value)
    for d in range(size):
        keys[d * BLOCK + slot] = k[d]
        values[slot * size + d] = v[d]


@compiled
def nothing(piece: int, size: int) -> None:
    """A piece that has seen no position: its maximum, its sum, and the weighted values."""
    result = f32(piece)
    result[0], result[1] = _LOWEST, np.float32(0)
    for d in range(size):
        result[2 + d] = np.float32(0)


@compiled
def gather(scores: int, begin: int, end: int, values: int, size: int, piece: int) -> None:
    """Add positions `begin` to `end` of a block to a piece, by their scores, which become weights in place."""
    s, v, result = f32(scores), f32(values), f32(piece)
    top = result[0]
    for t in range(begin, end):
        top = max(top, s[t])
    fade = exp(result[0] - top)
    total = np.float32(0)
    for t in range(begin, end):
        s[t] = exp(s[t] - top)
        total += s[t]
    result[1] = result[1] * fade + total
    result[0] = top
    if fade != np.float32(1):
        for d in range(size):
            result[2 + d] *= fade
    for t in range(begin, end):
        for d in range(size):
            result[2 + d] += s[t] * v[t * size + d]


@compiled
def attend_piece(
    q: int,
    heads: int,
    blocks: int,
    layer: int,
    group: int,
    groups: int,
    size: int,
    first: int,
    last: int,
    lowest: int,
    highest: int,
    bias: int,
    span: int,
    cap: F32,
    scratch: int,
    out: int,
    out_step: int,
) -> None:
    """The share of positions in blocks `first` to `last` for the heads of one group. Of each head there remain size + 2
    numbers at `out`: the maximum, the sum, and the values weighted by exp(score - maximum). `bias` is of the first
    head, by the distance back.
    """
    table, s = i64(blocks), f32(scratch)
    for h in range(heads):
        nothing(out + h * out_step, size)
    for n in range(first, last):
        base = table[n] + layer
        keys, values = base + 4 * group * size * BLOCK, base + 4 * (groups + group) * size * BLOCK
        begin, end = max(lowest - n * BLOCK, 0), min(highest + 1 - n * BLOCK, BLOCK)
        for h in range(heads):
            scores(q + 4 * h * size, keys, scratch, size)
            for t in range(begin, end):
                if cap > 0:
                    s[t] = cap * tanh(s[t] / cap)
                if bias != 0:
                    s[t] += f32(bias)[h * span + highest - n * BLOCK - t]
            gather(scratch, begin, end, values, size, out + h * out_step)


@compiled
def merge(pieces: int, splits: int, heads: int, size: int, sinks: int, out: int) -> None:
    """Join the pieces of each head of one row: [H, splits, size + 2] to [H, size]. A sink takes its part of the sum."""
    for h in range(heads):
        y = f32(out + 4 * h * size)
        top = _LOWEST if sinks == 0 else f32(sinks)[h]
        for p in range(splits):
            top = max(top, f32(pieces + 4 * (h * splits + p) * (size + 2))[0])
        total = np.float32(0) if sinks == 0 else exp(f32(sinks)[h] - top)
        for d in range(size):
            y[d] = np.float32(0)
        for p in range(splits):
            piece = f32(pieces + 4 * (h * splits + p) * (size + 2))
            weight = exp(piece[0] - top) if piece[1] > 0 else np.float32(0)
            total += weight * piece[1]
            for d in range(size):
                y[d] += weight * piece[2 + d]
        inverse = np.float32(1) / total if total > 0 else np.float32(0)
        for d in range(size):
            y[d] *= inverse


@compiled
def prepare_head(x: int, size: int, norm: int, weight: int, bias: int, eps: F32, cos: int, sin: int, half: int) -> None:
    """QK norm and rotary positions of one head, in place."""
    if norm >= 0:
        norm_row(norm, x, x, size, weight, bias, eps)
    if half > 0:
        turn(x, cos, sin, half)
