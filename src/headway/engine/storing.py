"""What becomes of products: a scale, a bias, an activation or a gate, and their place in the rows of results."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from headway.engine.lanes import spread
from headway.engine.machine import _F32, F32, compiled, f32, intrinsic
from headway.engine.operations import ADD, GELU_TANH, MAXOUT, NONE, RELU, SILU, activate
from headway.engine.tiles import LINE, TILE
from headway.engine.vectors import gelu_tanh_sixteen, silu_sixteen

_SIXTEEN = ir.VectorType(_F32, TILE)


def _numbers(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _SIXTEEN.as_pointer())


def _block(adds: bool, rectifies: bool, offset: bool) -> Any:
    """y = scale x (+ bias), or y += that, or the positive part of it: of 16 neighbours in each of `count` rows, which
    lie LINE bytes apart in x and `stride` in y.
    """

    @intrinsic
    def put(typing: Any, x: Any, y: Any, stride: Any, bias: Any, scale: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            factor = spread(builder, args[4], _SIXTEEN)
            zero, word = ir.Constant(_SIXTEEN, [0.0] * TILE), args[0].type
            moved = builder.load(_numbers(builder, args[3]), align=4) if offset else zero
            with cgutils.for_range(builder, args[5]) as loop:
                source = builder.add(args[0], builder.mul(loop.index, ir.Constant(word, LINE)))
                target = _numbers(builder, builder.add(args[1], builder.mul(loop.index, args[2])))
                values = builder.fmul(builder.load(_numbers(builder, source), align=4), factor)
                if offset:
                    values = builder.fadd(values, moved)
                if adds:
                    values = builder.fadd(builder.load(target, align=4), values)
                if rectifies:  # as `activate`: what is no number stays
                    values = builder.select(builder.fcmp_ordered("<=", values, zero), zero, values)
                builder.store(values, target, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4, types.float32, types.int64), generate

    return put


_store, _store_biased = _block(False, False, False), _block(False, False, True)
_add, _add_biased = _block(True, False, False), _block(True, False, True)
_rectify, _rectify_biased = _block(False, True, False), _block(False, True, True)


@compiled
def store(mode: int, code: int, y: int, row: int, value: F32, bias: int, cap: F32) -> None:
    """y[row] = activation(value + bias[row]), or y[row] += value + bias[row]."""
    out = f32(y)
    if bias != 0:
        value += f32(bias)[row]
    if mode == ADD:
        out[row] += value
    else:
        out[row] = activate(code, value, cap)


@compiled
def store_tile(
    mode: int, code: int, y: int, stride: int, row: int, values: int, count: int, width: int, bias: int, cap: F32,
    scale: F32,
) -> None:  # fmt: skip
    """`store` of `width` neighbours, of which `row` is the first, times `scale`, in each of `count` rows of numbers."""
    place, offsets = y + 4 * row, bias + 4 * row
    if width < TILE:
        for k in range(count):
            for i in range(width):
                store(mode, code, y + k * stride, row + i, scale * f32(values + k * LINE)[i], bias, cap)
    elif mode == ADD:
        if bias != 0:
            _add_biased(values, place, stride, offsets, scale, count)
        else:
            _add(values, place, stride, offsets, scale, count)
    elif code == RELU:
        if bias != 0:
            _rectify_biased(values, place, stride, offsets, scale, count)
        else:
            _rectify(values, place, stride, offsets, scale, count)
    else:
        if bias != 0:
            _store_biased(values, place, stride, offsets, scale, count)
        else:
            _store(values, place, stride, offsets, scale, count)
        if code != NONE:
            for k in range(count):
                _activate_sixteen(code, place + k * stride, cap)


@compiled
def _activate_sixteen(code: int, place: int, cap: F32) -> None:
    if code == SILU:
        silu_sixteen(place)
    elif code == GELU_TANH:
        gelu_tanh_sixteen(place)
    else:
        y = f32(place)
        for i in range(TILE):
            y[i] = activate(code, y[i], cap)


@compiled
def gate(code: int, gate: F32, up: F32, bias: int, one: int, two: int) -> F32:
    """activation(gate) * up, or with MAXOUT the larger, where their rows in the matrix are `one` and `two`."""
    if bias != 0:
        gate += f32(bias)[one]
        up += f32(bias)[two]
    return max(gate, up) if code == MAXOUT else activate(code, gate, np.float32(0)) * up


@compiled
def gate_tile(
    code: int, gates: int, ups: int, bias: int, row: int, rows: int, y: int, stride: int, count: int, width: int
) -> None:
    """`gate` of `width` neighbouring units, of which `row` is the first, in each of `count` rows of numbers."""
    if width < TILE:
        for k in range(count):
            g, u, out = f32(gates + k * LINE), f32(ups + k * LINE), f32(y + k * stride)
            for i in range(width):
                out[row + i] = gate(code, g[i], u[i], bias, row + i, rows + row + i)
        return
    if bias != 0:
        _store_biased(gates, gates, LINE, bias + 4 * row, np.float32(1), count)
        _store_biased(ups, ups, LINE, bias + 4 * (rows + row), np.float32(1), count)
    for k in range(count):
        _activate_sixteen(code, gates + k * LINE, np.float32(0))
        g, u, out = f32(gates + k * LINE), f32(ups + k * LINE), f32(y + k * stride + 4 * row)
        for i in range(TILE):
            out[i] = g[i] * u[i]


@compiled
def larger_tile(values: int, bias: int, row: int, y: int, stride: int, count: int, width: int) -> None:
    """The larger of each pair of neighbours, of `width` units, of which `row` is the first, in each of `count` rows."""
    for k in range(count):
        x, out = f32(values + k * LINE), f32(y + k * stride)
        for i in range(row, row + width):
            one, two = 2 * i, 2 * i + 1
            out[i] = gate(MAXOUT, x[one - 2 * row], x[two - 2 * row], bias, one, two)
