"""Rows of floats quantised to int8, in groups of 64: value = scale x byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.machine import _F32, _I8, _I32, F32, compiled, f32, i8, i32, intrinsic, types
from headway.engine.tiles import GROUP, INT8, SHIFT4, SHIFT8
from headway.engine.vectors import broadcast, call, constant, reduce

_LANES = 16
_FLOATS, _INTEGERS, _BYTES = (ir.VectorType(kind, _LANES) for kind in (_F32, _I32, _I8))
_PARTS = GROUP // _LANES


def _parts(builder: Any, address: Any, kind: ir.VectorType) -> list[Any]:
    """Pointers to a group's parts."""
    base = builder.inttoptr(address, kind.as_pointer())
    return [builder.gep(base, [ir.Constant(_I32, part)]) for part in range(_PARTS)]


def _load_group(builder: Any, address: Any) -> list[Any]:
    parts = [builder.load(pointer) for pointer in _parts(builder, address, _FLOATS)]
    for part in parts:
        part.align = 4
    return parts


@intrinsic
def _largest(typing: Any, x: Any) -> Any:
    """The largest magnitude of 64 floats; NaN if one of them is NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", b, a), b, a)

        parts = _load_group(builder, args[0])
        zero = constant(_FLOATS, 0.0)
        top, broken = call(builder, "fabs.v16f32", _FLOATS, parts[0]), builder.fmul(parts[0], zero)
        for part in parts[1:]:
            size = call(builder, "fabs.v16f32", _FLOATS, part)
            top = larger(top, size)
            broken = builder.fadd(broken, builder.fmul(part, zero))
        largest = reduce(builder, top, larger)
        return builder.fadd(largest, reduce(builder, broken, builder.fadd))

    return types.float32(types.int64), generate


@intrinsic
def _round(typing: Any, x: Any, inverse: Any, q: Any) -> Any:
    """Bytes of 64 floats times `inverse`, rounded to nearest; returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factor = broadcast(builder, args[1], _FLOATS)
        total: Any = None
        for part, target in zip(_load_group(builder, args[0]), _parts(builder, args[2], _BYTES)):
            codes = builder.fptosi(call(builder, "rint.v16f32", _FLOATS, builder.fmul(part, factor)), _INTEGERS)
            builder.store(builder.trunc(codes, _BYTES), target).align = 1
            total = codes if total is None else builder.add(total, codes)
        return reduce(builder, total, builder.add)

    return types.int32(types.int64, types.float32, types.int64), generate


@compiled
def _inverse(scale: F32) -> F32:
    return np.float32(1) / scale if scale > 0 else np.float32(0)


@compiled
def _part(x: int, count: int, q: int) -> Any:
    """`_largest` and `_round` for fewer than 64 floats, padded with zeros: the scale, and the sum."""
    values, codes = f32(x), i8(q)
    largest, broken = np.float32(0), np.float32(0)
    for c in range(count):
        largest = max(largest, abs(values[c]))
        broken += values[c] * np.float32(0)
    scale = (largest + broken) / np.float32(127)
    inverse, total = _inverse(scale), np.int32(0)
    for c in range(count):
        code = np.int32(np.rint(values[c] * inverse))
        codes[c] = np.int8(code)
        total += code
    for c in range(count, GROUP):
        codes[c] = np.int8(0)
    return scale, total


@compiled
def quantise_row(x: int, columns: int, kind: int, out: int, scales: int, corrections: int, groups: int) -> None:
    """Quantise a row of floats to int8, with a scale per group, padded with zeros. A group with a NaN or infinity gets
    a scale of NaN, so that products show it. Corrections cancel the shift of weights of that kind.
    """
    s, corr = f32(scales), i32(corrections)
    shift = np.int32(SHIFT8 if kind == INT8 else SHIFT4)
    for g in range(groups):
        source, target, remaining = x + 4 * g * GROUP, out + g * GROUP, columns - g * GROUP
        if remaining >= GROUP:
            scale = _largest(source) / np.float32(127)
            total = _round(source, _inverse(scale), target)
        else:
            scale, total = _part(source, remaining, target)
        s[g] = scale
        corr[g] = -shift * total
