"""What all vector code is made of: one number in all lanes, halves, sums over lanes, and functions of LLVM's,
and choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from headway.engine.machine import _I8, _I32

AHEAD = 4096  # bytes that weights are called for before they are used


def spread(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    """A number in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    order = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), order)


def reduce(builder: Any, x: Any, join: Callable[[Any, Any], Any]) -> Any:
    """One number of all lanes, by halves."""
    while x.type.count > 1:
        half = x.type.count // 2
        orders = ([start + i for i in range(half)] for start in (0, half))
        x = join(*(builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(_I32, half), order)) for order in orders))
    return builder.extract_element(x, ir.Constant(_I32, 0))


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """A function of LLVM's, by its name without "llvm."."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), args)


def choose(builder: Any, value: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """What the case of `value` writes; the last one's for any other value. So code that is compiled once for each case
    is chosen when it runs.
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


def call_for(builder: Any, place: Any) -> None:
    """Have the line of memory at a pointer brought near. Where several products are made of a weight, few weights are
    under way at once, and memory would wait for the arithmetic.
    """
    hints = (ir.Constant(_I32, value) for value in (0, 3, 1))
    call(builder, "prefetch.p0i8", ir.VoidType(), builder.bitcast(place, _I8.as_pointer()), *hints)
