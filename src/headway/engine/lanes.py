"""What all vector code is made of: one number in all lanes, halves, sums over lanes, and functions of LLVM's,
and choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from headway.engine.machine import _I32


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
