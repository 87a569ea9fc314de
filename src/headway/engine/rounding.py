"""Rows of floats quantised to int8, in groups of 64: value = scale x byte."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.engine.codegen import Float, Int, Int32, Value, add, constant, kernel, larger
from headway.engine.machine import F32, compiled, f32, i8, i32
from headway.engine.tiles import GROUP, INT8, SHIFT4, SHIFT8
from headway.engine.vectors import BYTES, FLOATS, INTEGERS, LANES

_PARTS = GROUP // LANES


def _load_group(address: Value) -> list[Value]:
    return [(address.at(FLOATS) + part).load(align=4) for part in range(_PARTS)]


@kernel
def _largest(x: Int) -> Float:
    """The largest magnitude of 64 floats; NaN if one of them is NaN."""
    parts = _load_group(x)
    top, broken = parts[0].apply("fabs"), parts[0] * 0.0
    for part in parts[1:]:
        top = larger(part.apply("fabs"), top)
        broken = broken + part * 0.0
    return top.reduce(lambda a, b: larger(b, a)) + broken.reduce(add)


@kernel
def _round(x: Int, inverse: Float, q: Int) -> Int32:
    """Bytes of 64 floats times `inverse`, rounded to nearest; returns their sum."""
    factor, total = inverse.broadcast(FLOATS), constant(INTEGERS, 0)
    for n, part in enumerate(_load_group(x)):
        codes = (part * factor).apply("rint").to(INTEGERS, "fptosi")
        (q.at(BYTES) + n).store(codes.to(BYTES, "trunc"), align=1)
        total = total + codes
    return total.reduce(add)


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
