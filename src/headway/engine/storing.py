"""What becomes of products: a scale, a bias, an activation or a gate, and their place in the rows of results."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from headway.engine.machine import _F32, _I32, F32, compiled, f32, intrinsic
from headway.engine.operations import ADD, GELU_TANH, MAXOUT, NONE, RELU, SILU, activate
from headway.engine.tiles import TILE
from headway.engine.vectors import gelu_tanh_sixteen, silu_sixteen

_SIXTEEN = ir.VectorType(_F32, TILE)


def _whole(adds: bool, rectifies: bool) -> Any:
    """y = scale x + bias of 16 neighbours, or y += that, or the positive part of it."""

    @intrinsic
    def put(typing: Any, x: Any, y: Any, bias: Any, scale: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target, offsets = (builder.inttoptr(arg, _SIXTEEN.as_pointer()) for arg in args[:3])
            one = builder.insert_element(ir.Constant(_SIXTEEN, ir.Undefined), args[3], ir.Constant(_I32, 0))
            order = ir.Constant(ir.VectorType(_I32, TILE), [0] * TILE)
            values = builder.load(source, align=4)
            values = builder.fmul(values, builder.shuffle_vector(one, ir.Constant(_SIXTEEN, ir.Undefined), order))
            zero = ir.Constant(_SIXTEEN, [0.0] * TILE)
            if adds:
                values = builder.fadd(builder.load(target, align=4), values)
            with builder.if_else(builder.icmp_signed("!=", args[2], ir.Constant(args[2].type, 0))) as (some, none):
                with some:
                    moved, after = builder.fadd(values, builder.load(offsets, align=4)), builder.block
                with none:
                    before = builder.block
            merged = builder.phi(_SIXTEEN)
            merged.add_incoming(moved, after)
            merged.add_incoming(values, before)
            if rectifies:  # as `activate`: what is no number stays
                merged = builder.select(builder.fcmp_ordered("<=", merged, zero), zero, merged)
            builder.store(merged, target, align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.float32), generate

    return put


_store_sixteen, _add_sixteen, _rectify_sixteen = _whole(False, False), _whole(True, False), _whole(False, True)


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
    mode: int, code: int, y: int, row: int, values: int, count: int, bias: int, cap: F32, scale: F32
) -> None:
    """`store` of `count` neighbours, of which `row` is the first, times `scale`."""
    if count < TILE:
        for i in range(count):
            store(mode, code, y, row + i, scale * f32(values)[i], bias, cap)
        return
    place, offsets = y + 4 * row, 0 if bias == 0 else bias + 4 * row
    if mode == ADD:
        _add_sixteen(values, place, offsets, scale)
    elif code == RELU:
        _rectify_sixteen(values, place, offsets, scale)
    else:
        _store_sixteen(values, place, offsets, scale)
        _activate_sixteen(code, place, cap)


@compiled
def _activate_sixteen(code: int, place: int, cap: F32) -> None:
    if code == SILU:
        silu_sixteen(place)
    elif code == GELU_TANH:
        gelu_tanh_sixteen(place)
    elif code != NONE:
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
def gate_tile(code: int, gates: int, ups: int, bias: int, row: int, rows: int, y: int, count: int) -> None:
    """`gate` of `count` neighbouring units, of which `row` is the first."""
    if count < TILE:
        g, u = f32(gates), f32(ups)
        for i in range(count):
            f32(y)[row + i] = gate(code, g[i], u[i], bias, row + i, rows + row + i)
        return
    if bias != 0:
        _store_sixteen(gates, gates, bias + 4 * row, np.float32(1))
        _store_sixteen(ups, ups, bias + 4 * (rows + row), np.float32(1))
    _activate_sixteen(code, gates, np.float32(0))
    g, u, out = f32(gates), f32(ups), f32(y + 4 * row)
    for i in range(TILE):
        out[i] = g[i] * u[i]


@compiled
def larger_tile(values: int, bias: int, row: int, y: int, count: int) -> None:
    """The larger of each pair of neighbours, of `count` units, of which `row` is the first."""
    x, out = f32(values), f32(y + 4 * row)
    for i in range(count):
        out[i] = gate(MAXOUT, x[2 * i], x[2 * i + 1], bias, 2 * (row + i), 2 * (row + i) + 1)
