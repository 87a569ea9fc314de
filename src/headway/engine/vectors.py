"""Functions of 16 neighbouring numbers at once, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from headway.engine.lanes import call, reduce, spread
from headway.engine.machine import _F32, _I32, intrinsic

LANES = 16
_NUMBERS, _WHOLE = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_CONTRACT = ("contract",)
# e^r = 1 + r + r^2 (...), as machine.exp has it
_SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _all(value: float) -> ir.Constant:
    return ir.Constant(_NUMBERS, [value] * LANES)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c."""
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


def _exp(builder: Any, x: Any) -> Any:
    """machine.exp of each; what is no number stays none."""
    x = builder.select(builder.fcmp_ordered("<", x, _all(-87.0)), _all(-87.0), x)
    x = builder.select(builder.fcmp_ordered(">", x, _all(88.0)), _all(88.0), x)
    n = call(builder, "floor.v16f32", _NUMBERS, _fused(builder, x, _all(1.4426950408889634), _all(0.5)))
    r = _fused(builder, n, _all(2.12194440e-4), _fused(builder, n, _all(-0.693359375), x))
    p = _all(_SERIES[0])
    for factor in _SERIES[1:]:
        p = _fused(builder, p, r, _all(factor))
    p = builder.fadd(_fused(builder, builder.fmul(p, r), r, r), _all(1.0))
    power = builder.add(builder.fptosi(n, _WHOLE), ir.Constant(_WHOLE, [127] * LANES))
    power = builder.shl(power, ir.Constant(_WHOLE, [23] * LANES))
    return builder.fmul(p, builder.bitcast(power, _NUMBERS))


def _sigmoid(builder: Any, x: Any) -> Any:
    return builder.fdiv(_all(1.0), builder.fadd(_all(1.0), _exp(builder, builder.fmul(x, _all(-1.0)))))


def _silu(builder: Any, x: Any) -> Any:
    return builder.fmul(x, _sigmoid(builder, x))


def _gelu_tanh(builder: Any, x: Any) -> Any:
    """0.5 x (1 + tanh(y)) is x sigmoid(2 y)."""
    square = builder.fmul(x, x)
    inner = builder.fmul(
        x, _fused(builder, square, _all(2 * 0.044715 * 0.7978845608028654), _all(2 * 0.7978845608028654))
    )
    return builder.fmul(x, _sigmoid(builder, inner))


def _in_place(function: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def apply(typing: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], _NUMBERS.as_pointer())
            builder.store(function(builder, builder.load(pointer, align=4)), pointer, align=4)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return apply


def _exponentials(count: int) -> Any:
    """exp(x - top) of 16 `count` numbers, in place; their sum."""

    @intrinsic
    def apply(typing: Any, place: Any, top: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base = builder.inttoptr(args[0], _NUMBERS.as_pointer())
            most = spread(builder, args[1], _NUMBERS)
            total: Any = _all(0.0)
            for part in range(count):
                pointer = builder.gep(base, [ir.Constant(_I32, part)])
                value = _exp(builder, builder.fsub(builder.load(pointer, align=4), most))
                builder.store(value, pointer, align=4)
                total = builder.fadd(total, value)
            return reduce(builder, total, builder.fadd)

        return types.float32(types.int64, types.float32), generate

    return apply


exponentials_32 = _exponentials(2)
silu_sixteen, gelu_tanh_sixteen = _in_place(_silu), _in_place(_gelu_tanh)
