"""Products of a row of weights with rows of numbers in fp32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from headway.engine.lanes import AHEAD, call_for, reduce
from headway.engine.machine import _F32, intrinsic

_F16 = ir.VectorType(_F32, 16)
_PARTS = 2  # sums of 16 numbers that a product of fp32 rows keeps


def _sixteen(builder: Any, base: Any, offset: Any) -> Any:
    found = builder.load(builder.bitcast(builder.gep(base, [offset]), _F16.as_pointer()))
    found.align = 4
    return found


def _row_dots(count: int) -> Any:
    """The products of one row of weights with `count` rows of numbers that lie `stride` bytes apart, into a tuple. Each
    is summed in the same order whatever `count` is, so that a row does not depend on its neighbours.
    """

    @intrinsic
    def dots(typing: Any, w: Any, x: Any, stride: Any, columns: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = args[0].type
            number = lambda value: ir.Constant(word, value)  # noqa: E731
            weights = builder.inttoptr(args[0], _F32.as_pointer())
            rows = [
                builder.inttoptr(builder.add(args[1], builder.mul(args[2], number(i))), _F32.as_pointer())
                for i in range(count)
            ]
            sums = [
                [cgutils.alloca_once_value(builder, ir.Constant(_F16, [0.0] * 16)) for _ in range(_PARTS)] for _ in rows
            ]
            with cgutils.for_range(builder, builder.sdiv(args[3], number(16 * _PARTS))) as loop:
                start = builder.mul(loop.index, number(16 * _PARTS))
                for part in range(_PARTS):
                    offset = builder.add(start, number(16 * part))
                    weight = _sixteen(builder, weights, offset)
                    if count > 1:
                        call_for(builder, builder.gep(weights, [builder.add(offset, number(AHEAD // 4))]))
                    for row, totals in zip(rows, sums):
                        product = builder.fmul(weight, _sixteen(builder, row, offset), flags=("contract",))
                        total = builder.fadd(builder.load(totals[part]), product, flags=("contract",))
                        builder.store(total, totals[part])
            ends = []
            for row, totals in zip(rows, sums):
                whole = builder.load(totals[0])
                for total in totals[1:]:
                    whole = builder.fadd(whole, builder.load(total))
                ends.append(cgutils.alloca_once_value(builder, reduce(builder, whole, builder.fadd)))
                done = builder.mul(builder.sdiv(args[3], number(16 * _PARTS)), number(16 * _PARTS))
                with cgutils.for_range(builder, builder.sub(args[3], done)) as loop:
                    offset = builder.add(done, loop.index)
                    left, right = (builder.load(builder.gep(base, [offset])) for base in (weights, row))
                    builder.store(builder.fadd(builder.load(ends[-1]), builder.fmul(left, right)), ends[-1])
            values = [builder.load(end) for end in ends]
            return values[0] if count == 1 else context.make_tuple(builder, signature.return_type, values)

        result = types.float32 if count == 1 else types.UniTuple(types.float32, count)
        return result(*[types.int64] * 4), generate

    return dots


dot32, four_dots32, eight_dots32 = _row_dots(1), _row_dots(4), _row_dots(8)
