"""Floats in 16 bits, IEEE 754's binary16: widening to fp32, and rounding to nearest.

Where the processor has no instructions, integer arithmetic gives the same results, to the last bit.
"""

from __future__ import annotations

import math
import platform
from typing import Any

from llvmlite import ir

from headway.engine.machine import _F32, _I16, _I32, FEATURES, cgutils, intrinsic, types
from headway.engine.vectors import STREAMED, call, call_for, constant, pointer, word

_LINE = 32  # floats per cache line
_MOST = 65504.0
_LEAST_NORMAL = 2.0**-14
_UNIT = 2.0**-24  # numbers below are multiples of this
_MOVED, _CUT = 112, 13  # offset of exponents from those of fp32, and bits that fractions lack
_SIGN, _REST, _EXPONENT, _FRACTION = 0x8000, 0x7FFF, 0x7C00, 0x03FF
_NONE = 0x7E00  # NaN
_HAS_HALVES = FEATURES.get("f16c", False) or platform.machine() in ("aarch64", "arm64")


def widen(builder: Any, codes: Any) -> Any:
    """16-bit floats as fp32."""
    count = codes.type.count
    wide, whole = ir.VectorType(_F32, count), ir.VectorType(_I32, count)
    if _HAS_HALVES:
        return builder.fpext(builder.bitcast(codes, ir.VectorType(ir.HalfType(), count)), wide)
    code = builder.zext(codes, whole)
    exponent = builder.and_(code, constant(whole, _EXPONENT))
    normal = builder.add(
        builder.shl(builder.and_(code, constant(whole, _REST)), constant(whole, _CUT)), constant(whole, _MOVED << 23)
    )
    tiny = builder.uitofp(builder.and_(code, constant(whole, _FRACTION)), wide)
    tiny = builder.bitcast(builder.fmul(tiny, constant(wide, _UNIT)), whole)
    endless = builder.or_(normal, constant(whole, 0xFF << 23))
    size = builder.select(builder.icmp_unsigned("==", exponent, constant(whole, 0)), tiny, normal)
    size = builder.select(builder.icmp_unsigned("==", exponent, constant(whole, _EXPONENT)), endless, size)
    sign = builder.shl(builder.and_(code, constant(whole, _SIGN)), constant(whole, 16))
    return builder.bitcast(builder.or_(size, sign), wide)


def _narrow(builder: Any, value: Any) -> Any:
    """A float of magnitude at most _MAX, or infinite, in 16 bits: round to nearest, ties to even."""
    if _HAS_HALVES:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    bits = builder.bitcast(value, _I32)
    size = builder.and_(bits, constant(_I32, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, constant(_I32, _CUT)), constant(_I32, 1))
    rounded = builder.add(builder.add(size, odd), constant(_I32, (1 << _CUT - 1) - 1))
    normal = builder.lshr(builder.sub(rounded, constant(_I32, _MOVED << 23)), constant(_I32, _CUT))
    number = builder.bitcast(size, _F32)
    units = call(builder, "rint.f32", _F32, builder.fmul(number, constant(_F32, 1 / _UNIT)))
    is_tiny = builder.fcmp_ordered("<", number, constant(_F32, _LEAST_NORMAL))
    tiny = builder.fptoui(builder.select(is_tiny, units, constant(_F32, 0.0)), _I32)
    code = builder.select(is_tiny, tiny, normal)
    code = builder.select(builder.fcmp_ordered("==", number, constant(_F32, math.inf)), constant(_I32, _EXPONENT), code)
    code = builder.select(builder.fcmp_unordered("uno", value, value), constant(_I32, _NONE), code)
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
            found = builder.load(pointer(builder, builder.add(source, start), codes), align=2)
            place = builder.add(target, builder.mul(start, word(2)))
            builder.store(widen(builder, found), pointer(builder, place, wide), align=4)
            call_for(builder, pointer(builder, builder.add(ahead, start), _I16), STREAMED)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def put_fp16(typing: Any, place: Any, value: Any) -> Any:
    """Round a float to fp16 at an address; larger magnitudes become the largest fp16 number. NaN and infinity are kept,
    so that a broken weight is visible.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, value = args
        for most, end in ((_MOST, math.inf), (-_MOST, -math.inf)):
            beyond = builder.fcmp_ordered(">" if most > 0 else "<", value, constant(_F32, most))
            beyond = builder.and_(beyond, builder.fcmp_ordered("!=", value, constant(_F32, end)))
            value = builder.select(beyond, constant(_F32, most), value)
        builder.store(_narrow(builder, value), pointer(builder, place, _I16), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate
