"""Building blocks of vector code: broadcasts, reductions by halves, and functions of 16 neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llvmlite import binding, ir

from headway.engine.machine import _F32, _I8, _I32, _I64, cgutils, intrinsic, types

_CONTRACT = ("contract",)
AHEAD = 4096  # bytes prefetched ahead
# The cache for prefetched data that is read once: whichever was faster on AMD's processors and on others (0021).
STREAMED = 2 if binding.get_host_cpu_name().startswith("znver") else 3


def word(value: int) -> ir.Constant:
    """An address, or a number of elements, bytes or loop iterations."""
    return ir.Constant(_I64, value)


def constant(kind: ir.Type, value: float) -> ir.Constant:
    """A number, in all lanes of a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def pointer(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, in this order, whatever the compiler does elsewhere; rounded once where the processor can."""
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


def broadcast(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    """A number in all lanes."""
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    order = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), order)


def fold_halves(values: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    """One vector from 2^n, by halves."""
    while len(values) > 1:
        values = [join(*values[n : n + 2]) for n in range(0, len(values), 2)]
    return values[0]


def reduce(builder: Any, x: Any, join: Callable[[Any, Any], Any]) -> Any:
    """One number from all lanes, by halves."""
    while x.type.count > 1:
        half = x.type.count // 2
        orders = ([start + i for i in range(half)] for start in (0, half))
        x = join(*(builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(_I32, half), order)) for order in orders))
    return builder.extract_element(x, ir.Constant(_I32, 0))


def call(builder: Any, name: str, return_type: ir.Type, *args: Any) -> Any:
    """Call an LLVM intrinsic by its name without "llvm."."""
    kind = ir.FunctionType(return_type, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), args)


def emit_switch(builder: Any, value: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """Emit a switch over `value` with the code of each case; any other value runs the last case. So code compiled once
    per case is selected at run time.
    """
    blocks = {number: builder.append_basic_block() for number in cases}
    after = builder.append_basic_block()
    switch = builder.switch(value, list(blocks.values())[-1])
    for number, write in cases.items():
        switch.add_case(ir.Constant(value.type, number), blocks[number])
        builder.position_at_end(blocks[number])
        write()
        builder.branch(after)
    builder.position_at_end(after)


def prefetch(builder: Any, address: Any, cache: int = 3, to_write: bool = False) -> None:
    """Prefetch the line of memory at a pointer into the first cache (3) or the second (2). When several products use
    each weight, few loads are in flight, and memory would wait for the arithmetic.
    """
    hints = (ir.Constant(_I32, value) for value in (int(to_write), cache, 1))
    call(builder, "prefetch.p0i8", ir.VoidType(), builder.bitcast(address, _I8.as_pointer()), *hints)


LANES = 16
_FLOATS, _INTEGERS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_all = partial(constant, _FLOATS)
# e^r = 1 + r + r^2 (...), as in machine.exp
_SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def exponential(builder: Any, x: Any) -> Any:
    """machine.exp of each element; NaN stays NaN."""
    x = builder.select(builder.fcmp_ordered("<", x, _all(-87.0)), _all(-87.0), x)
    x = builder.select(builder.fcmp_ordered(">", x, _all(88.0)), _all(88.0), x)
    n = call(builder, "floor.v16f32", _FLOATS, multiply_add(builder, x, _all(1.4426950408889634), _all(0.5)))
    r = multiply_add(builder, n, _all(2.12194440e-4), multiply_add(builder, n, _all(-0.693359375), x))
    p = _all(_SERIES[0])
    for factor in _SERIES[1:]:
        p = multiply_add(builder, p, r, _all(factor))
    p = builder.fadd(multiply_add(builder, builder.fmul(p, r), r, r), _all(1.0))
    power = builder.add(builder.fptosi(n, _INTEGERS), constant(_INTEGERS, 127))
    power = builder.shl(power, constant(_INTEGERS, 23))
    return builder.fmul(p, builder.bitcast(power, _FLOATS))


def _sigmoid(builder: Any, x: Any) -> Any:
    return builder.fdiv(_all(1.0), builder.fadd(_all(1.0), exponential(builder, builder.fmul(x, _all(-1.0)))))


def _silu(builder: Any, x: Any) -> Any:
    return builder.fmul(x, _sigmoid(builder, x))


def _gelu_tanh(builder: Any, x: Any) -> Any:
    """0.5 x (1 + tanh(y)) is x sigmoid(2 y)."""
    square = builder.fmul(x, x)
    inner = builder.fmul(
        x, multiply_add(builder, square, _all(2 * 0.044715 * 0.7978845608028654), _all(2 * 0.7978845608028654))
    )
    return builder.fmul(x, _sigmoid(builder, inner))


# Abramowitz and Stegun 1964, 7.1.26: 1 - erf(z) = t (a1 + t (a2 + ...)) e^(-z z), t = 1 / (1 + p z), to 1.5e-7.
_TAIL, _TAIL_RATE = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592), 0.3275911


def _gelu(builder: Any, x: Any) -> Any:
    """max(x, 0) - |x| times the probability of a larger magnitude."""
    size = call(builder, "fabs.v16f32", _FLOATS, x)
    z = builder.fmul(size, _all(0.7071067811865476))
    t = builder.fdiv(_all(1.0), multiply_add(builder, z, _all(_TAIL_RATE), _all(1.0)))
    p = _all(_TAIL[0])
    for factor in _TAIL[1:]:
        p = multiply_add(builder, p, t, _all(factor))
    tail = builder.fmul(builder.fmul(p, t), exponential(builder, builder.fmul(builder.fmul(z, z), _all(-1.0))))
    positive = builder.select(builder.fcmp_ordered(">", x, _all(0.0)), x, _all(0.0))
    return builder.fsub(positive, builder.fmul(builder.fmul(size, _all(0.5)), tail))


def _quick_gelu(builder: Any, x: Any) -> Any:
    return builder.fmul(x, _sigmoid(builder, builder.fmul(x, _all(1.702))))


def _relu_squared(builder: Any, x: Any) -> Any:
    positive = builder.select(builder.fcmp_ordered("<=", x, _all(0.0)), _all(0.0), x)  # NaN stays NaN
    return builder.fmul(positive, positive)


def _in_place(function: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def apply(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], _FLOATS.as_pointer())
            builder.store(function(builder, builder.load(pointer, align=4)), pointer, align=4)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return apply


def _exponentials(count: int) -> Any:
    """exp(x - top) of 16 `count` floats, in place; returns their sum."""

    @intrinsic
    def apply(typing: Any, address: Any, top: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base = builder.inttoptr(args[0], _FLOATS.as_pointer())
            maximum = broadcast(builder, args[1], _FLOATS)
            total: Any = _all(0.0)
            for part in range(count):
                pointer = builder.gep(base, [ir.Constant(_I32, part)])
                value = exponential(builder, builder.fsub(builder.load(pointer, align=4), maximum))
                builder.store(value, pointer, align=4)
                total = builder.fadd(total, value)
            return reduce(builder, total, builder.fadd)

        return types.float32(types.int64, types.float32), generate

    return apply


exponentials_32 = _exponentials(2)
silu_sixteen, gelu_tanh_sixteen = _in_place(_silu), _in_place(_gelu_tanh)
gelu_sixteen, quick_gelu_sixteen = _in_place(_gelu), _in_place(_quick_gelu)
relu_squared_sixteen = _in_place(_relu_squared)
