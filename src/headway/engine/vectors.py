"""Functions of 16 neighbours, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headway.engine.codegen import F32, I8, I32, Accumulator, Float, Int, Value, add, constant, kernel, loop, vector

LANES = 16
FLOATS, INTEGERS, BYTES = vector(F32, LANES), vector(I32, LANES), vector(I8, LANES)
# e^r = 1 + r + r^2 (...), as in operations.exp
_SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def polynomial(factors: tuple[float, ...], x: Value) -> Value:
    """The first factor belongs to the highest power."""
    p = constant(x.type, factors[0])
    for factor in factors[1:]:
        p = p.multiply_add(x, factor)
    return p


def exponential(x: Value) -> Value:
    """operations.exp of each element; NaN stays NaN."""
    x = (x < -87.0).select(-87.0, x)
    x = (x > 88.0).select(88.0, x)
    n = x.multiply_add(1.4426950408889634, 0.5).apply("floor")
    r = n.multiply_add(2.12194440e-4, n.multiply_add(-0.693359375, x))
    p = polynomial(_SERIES, r)
    p = (p * r).multiply_add(r, r) + 1.0
    power = n.to(INTEGERS, "fptosi") + 127 << 23
    return p * power.to(FLOATS)


def sigmoid(x: Value) -> Value:
    return 1.0 / (1.0 + exponential(x * -1.0))


def to_bf16(x: Value) -> Value:
    """bf16 in the upper halves of words, rounded to nearest, ties to even; NaN stays NaN."""
    bits = x.to(INTEGERS)
    odd = bits.shift_unsigned(16) & 1
    bits = bits + 0x7FFF + odd
    return x.is_nan().select(0x7FC00000, bits)


def _in_place(function: Callable[[Value], Value]) -> Any:
    """A kernel that applies a function to the 16 floats at an address."""

    @kernel
    def apply(address: Int) -> None:
        base = address.at(FLOATS)
        base.store(function(base.load(align=4)), align=4)

    return apply


@_in_place
def silu_sixteen(x: Value) -> Value:
    return x * sigmoid(x)


@_in_place
def gelu_tanh_sixteen(x: Value) -> Value:
    """0.5 x (1 + tanh(y)) is x sigmoid(2 y)."""
    inner = x * (x * x).multiply_add(2 * 0.044715 * 0.7978845608028654, 2 * 0.7978845608028654)
    return x * sigmoid(inner)


# Abramowitz and Stegun 1964, 7.1.26: 1 - erf(z) = t (a1 + t (a2 + ...)) e^(-z z), t = 1 / (1 + p z), to 1.5e-7.
_TAIL, _TAIL_RATE = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592), 0.3275911


@_in_place
def gelu_sixteen(x: Value) -> Value:
    """max(x, 0) - |x| times the probability of a larger magnitude."""
    size = x.apply("fabs")
    z = size * 0.7071067811865476
    t = 1.0 / z.multiply_add(_TAIL_RATE, 1.0)
    tail = polynomial(_TAIL, t) * t * exponential(z * z * -1.0)
    return (x > 0.0).select(x, 0.0) - size * 0.5 * tail


@_in_place
def quick_gelu_sixteen(x: Value) -> Value:
    return x * sigmoid(x * 1.702)


@_in_place
def relu_squared_sixteen(x: Value) -> Value:
    positive = (x <= 0.0).select(0.0, x)  # NaN stays NaN
    return positive * positive


@kernel
def exponentials_32(address: Int, top: Float) -> Float:
    """exp(x - top) of 32 floats, in place; returns their sum."""
    base, maximum, total = address.at(FLOATS), top.broadcast(FLOATS), constant(FLOATS, 0.0)
    for part in range(2):
        value = exponential((base + part).load(align=4) - maximum)
        (base + part).store(value, align=4)
        total = total + value
    return total.reduce(add)


@kernel
def dot_sixteens(a: Int, b: Int, vectors: Int) -> Float:
    """The dot product of this many times sixteen floats."""
    total = Accumulator(FLOATS, 0.0)
    for i in loop(vectors):
        step = i * 64
        total.add_product(*((base + step).load(FLOATS, align=4) for base in (a, b)))
    return total.value.reduce(add)
