"""Floats in 16 bits, IEEE 754's binary16: widening to fp32, and rounding to nearest.

If the processor has no instructions for this, integer arithmetic gives the same results, to the last bit.
"""

from __future__ import annotations

import math
import platform

from llvmlite import ir

from headway.engine.codegen import F32, I16, I32, STREAMED, Float, Int, Value, call, kernel, loop, vector
from headway.engine.processor import FEATURES

_LINE = 32  # floats per cache line
_MAX = 65504.0
_MIN_NORMAL = 2.0**-14
_UNIT = 2.0**-24  # smaller numbers are multiples of this
_MOVED, _CUT = 112, 13  # offset from fp32 exponents, and bits that fractions lack
_SIGN, _MAGNITUDE, _EXPONENT, _FRACTION = 0x8000, 0x7FFF, 0x7C00, 0x03FF
_NAN = 0x7E00  # NaN
_HAS_HALVES = FEATURES.get("f16c", False) or platform.machine() in ("aarch64", "arm64")


def widen(codes: Value) -> Value:
    """16-bit floats as fp32."""
    count = codes.type.count
    wide, integers = vector(F32, count), vector(I32, count)
    if _HAS_HALVES:
        return codes.to(vector(ir.HalfType(), count)).to(wide, "fpext")
    code = codes.to(integers, "zext")
    exponent = code & _EXPONENT
    normal = ((code & _MAGNITUDE) << _CUT) + (_MOVED << 23)
    tiny = ((code & _FRACTION).to(wide, "uitofp") * _UNIT).to(integers)
    endless = normal | 0xFF << 23
    size = exponent.equals(0).select(tiny, normal)
    size = exponent.equals(_EXPONENT).select(endless, size)
    return (size | (code & _SIGN) << 16).to(wide)


@kernel
def put_fp16(address: Int, value: Float) -> None:
    """Round a float to fp16 at an address, to nearest, ties to even; larger magnitudes become the largest fp16 number.
    NaN and infinity are kept, so that a broken weight is visible.
    """
    overflows = (value > _MAX) & value.differs(math.inf)
    value = overflows.select(_MAX, value)
    overflows = (value < -_MAX) & value.differs(-math.inf)
    value = overflows.select(-_MAX, value)
    if _HAS_HALVES:
        address.store(value.to(ir.HalfType(), "fptrunc").to(I16), align=2)
        return
    bits = value.to(I32)
    size = bits & 0x7FFFFFFF
    odd = size.shift_unsigned(_CUT) & 1
    nearest = size + odd + ((1 << _CUT - 1) - 1)
    normal = (nearest - (_MOVED << 23)).shift_unsigned(_CUT)
    number = size.to(F32)
    units = call("rint.f32", F32, number * (1 / _UNIT))
    is_tiny = number < _MIN_NORMAL
    code = is_tiny.select(is_tiny.select(units, 0.0).to(I32, "fptoui"), normal)
    code = number.equals(math.inf).select(_EXPONENT, code)
    code = value.is_nan().select(_NAN, code)
    sign = (bits & _SIGN << 16).shift_unsigned(16)
    address.store((code | sign).to(I16, "trunc"), align=2)


@kernel
def widen_all(source: Int, lines: Int, target: Int, ahead: Int) -> None:
    """Widen `lines` times 32 floats from `source` to fp32 at `target`. Prefetches as many at `ahead`."""
    for line in loop(lines):
        start = line * (2 * _LINE)
        halves = (source + start).load(vector(I16, _LINE), align=2)
        (target + start * 2).store(widen(halves), align=4)
        (ahead + start).prefetch(STREAMED)
