"""Floats in 16 bits, IEEE 754's binary16: widening to fp32, and rounding to nearest.

If the processor has no instructions for this, integer arithmetic gives the same results, to the last bit.
"""

from __future__ import annotations

import math
import platform
from typing import Any

from llvmlite import ir

from headway.engine.machine import _F32, _I16, _I32, FEATURES, cgutils, intrinsic, types
from headway.engine.vectors import STREAMED, call, constant, pointer, prefetch, word

_LINE = 32  # floats per cache line
_MAX = 65504.0
_MIN_NORMAL = 2.0**-14
_UNIT = 2.0**-24  # smaller numbers are multiples of this
_MOVED, _CUT = 112, 13  # offset from fp32 exponents, and bits that fractions lack
_SIGN, _MAGNITUDE, _EXPONENT, _FRACTION = 0x8000, 0x7FFF, 0x7C00, 0x03FF
_NAN = 0x7E00  # NaN
_HAS_HALVES = FEATURES.get("f16c", False) or platform.machine() in ("aarch64", "arm64")


def widen(builder: Any, codes: Any) -> Any:
    """16-bit floats as fp32."""
    count = codes.type.count
    wide, integers = ir.VectorType(_F32, count), ir.VectorType(_I32, count)
    if _HAS_HALVES:
        return builder.fpext(builder.bitcast(codes, ir.VectorType(ir.HalfType(), count)), wide)
    code = builder.zext(codes, integers)
    exponent = builder.and_(code, constant(integers, _EXPONENT))
    normal = builder.add(
        builder.shl(builder.and_(code, constant(integers, _MAGNITUDE)), constant(integers, _CUT)),
        constant(integers, _MOVED << 23),
    )
    tiny = builder.uitofp(builder.and_(code, constant(integers, _FRACTION)), wide)
    tiny = builder.bitcast(builder.fmul(tiny, constant(wide, _UNIT)), integers)
    endless = builder.or_(normal, constant(integers, 0xFF << 23))
    size = builder.select(builder.icmp_unsigned("==", exponent, constant(integers, 0)), tiny, normal)
    size = builder.select(builder.icmp_unsigned("==", exponent, constant(integers, _EXPONENT)), endless, size)
    sign = builder.shl(builder.and_(code, constant(integers, _SIGN)), constant(integers, 16))
    return builder.bitcast(builder.or_(size, sign), wide)


def _narrow(builder: Any, value: Any) -> Any:
    """A float of magnitude at most _MAX, or infinite, in 16 bits: round to nearest, ties to even."""
    if _HAS_HALVES:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    bits = builder.bitcast(value, _I32)
    size = builder.and_(bits, constant(_I32, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, constant(_I32, _CUT)), constant(_I32, 1))
    nearest = builder.add(builder.add(size, odd), constant(_I32, (1 << _CUT - 1) - 1))
    normal = builder.lshr(builder.sub(nearest, constant(_I32, _MOVED << 23)), constant(_I32, _CUT))
    number = builder.bitcast(size, _F32)
    units = call(builder, "rint.f32", _F32, builder.fmul(number, constant(_F32, 1 / _UNIT)))
    is_tiny = builder.fcmp_ordered("<", number, constant(_F32, _MIN_NORMAL))
    tiny = builder.fptoui(builder.select(is_tiny, units, constant(_F32, 0.0)), _I32)
    code = builder.select(is_tiny, tiny, normal)
    code = builder.select(builder.fcmp_ordered("==", number, constant(_F32, math.inf)), constant(_I32, _EXPONENT), code)
    code = builder.select(builder.fcmp_unordered("uno", value, value), constant(_I32, _NAN), code)
    sign = builder.lshr(builder.and_(bits, constant(_I32, _SIGN << 16)), constant(_I32, 16))
    return builder.trunc(builder.or_(code, sign), _I16)


@intrinsic
def widen_all(typing: Any, source: Any, lines: Any, target: Any, ahead: Any) -> Any:
    """Widen `lines` times 32 floats from `source` to fp32 at `target`. Prefetches as many at `ahead`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, lines, target, ahead = args
        codes, wide = ir.VectorType(_I16, _LINE), ir.VectorType(_F32, _LINE)
        with cgutils.for_range(builder, lines) as loop:
            start = builder.mul(loop.index, word(2 * _LINE))
            halves = builder.load(pointer(builder, builder.add(source, start), codes), align=2)
            out = builder.add(target, builder.mul(start, word(2)))
            builder.store(widen(builder, halves), pointer(builder, out, wide), align=4)
            prefetch(builder, pointer(builder, builder.add(ahead, start), _I16), STREAMED)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def put_fp16(typing: Any, address: Any, value: Any) -> Any:
    """Round a float to fp16 at an address; larger magnitudes become the largest fp16 number. NaN and infinity are kept,
    so that a broken weight is visible.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, value = args
        for limit, end in ((_MAX, math.inf), (-_MAX, -math.inf)):
            overflows = builder.fcmp_ordered(">" if limit > 0 else "<", value, constant(_F32, limit))
            overflows = builder.and_(overflows, builder.fcmp_ordered("!=", value, constant(_F32, end)))
            value = builder.select(overflows, constant(_F32, limit), value)
        builder.store(_narrow(builder, value), pointer(builder, address, _I16), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate
