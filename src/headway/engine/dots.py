"""Products of a row of weights with a row of numbers: fp32, and int8 or int4 weights with int8 numbers.

Quantised rows are cut into groups of 64 columns, with a scale each. An int8 group is 64 bytes; an int4 group is 32:
byte j has column j in its low half and column 32 + j in its high half, each 8 more than its value. Rows of numbers are
quantised alike, with a scale and a correction a group: processors multiply unsigned with signed bytes, so weights are
moved up by 128 or 8, and the correction takes away what that adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from headway.engine.machine import _F32, _I8, _I16, _I32, F32, INSTRUCTIONS, compiled, f32, i8, i32, intrinsic, u8

GROUP = 64
FP32, INT8, INT4 = 0, 1, 2
# What a weight was moved up by; AVX2 multiplies absolute values instead, as its sums of 16 bits could overflow.
SHIFT8 = 128 if INSTRUCTIONS == "vnni" else 0
SHIFT4 = 8

_B32, _W16, _D8, _F8 = (ir.VectorType(kind, n) for kind, n in ((_I8, 32), (_I16, 16), (_I32, 8), (_F32, 8)))
_F16 = ir.VectorType(_F32, 16)
_PARTS = 2  # sums of 16 numbers that a product of fp32 rows keeps


def _fill(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _bytes(builder: Any, base: Any, offset: Any) -> Any:
    found = builder.load(builder.bitcast(builder.gep(base, [offset]), _B32.as_pointer()))
    found.align = 1
    return found


def _sixteen(builder: Any, base: Any, offset: Any) -> Any:
    found = builder.load(builder.bitcast(builder.gep(base, [offset]), _F16.as_pointer()))
    found.align = 4
    return found


def _total(builder: Any, parts: Any) -> Any:
    """The sum of a vector's numbers, by halves."""
    while parts.type.count > 1:
        half = parts.type.count // 2
        low, high = (
            builder.shuffle_vector(
                parts, parts, ir.Constant(ir.VectorType(_I32, half), [start + i for i in range(half)])
            )
            for start in (0, half)
        )
        parts = builder.fadd(low, high)
    return builder.extract_element(parts, ir.Constant(_I32, 0))


def _call(builder: Any, name: str, result: ir.Type, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _unsigned(builder: Any, total: Any, w: Any, x: Any) -> Any:
    """total + products of unsigned w with signed x, four to a lane."""
    if INSTRUCTIONS == "vnni":
        return _call(builder, "llvm.x86.avx512.vpdpbusd.256", _D8, [total, w, x])
    pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _W16, [w, x])
    return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", _D8, [pairs, _fill(_W16, 1)]))


def _signed(builder: Any, total: Any, w: Any, x: Any) -> Any:
    if INSTRUCTIONS == "vnni":
        return _unsigned(builder, total, builder.xor(w, _fill(_B32, 128)), x)
    size, turned = (_call(builder, "llvm.x86.avx2.psign.b", _B32, [part, w]) for part in (w, x))
    return _unsigned(builder, total, size, turned)


def _group8(builder: Any, w: Any, x: Any, group: Any, total: Any) -> Any:
    start = builder.mul(group, ir.Constant(group.type, GROUP))
    for half in (0, 32):
        offset = builder.add(start, ir.Constant(group.type, half))
        total = _signed(builder, total, _bytes(builder, w, offset), _bytes(builder, x, offset))
    return total


def _group4(builder: Any, w: Any, x: Any, group: Any, total: Any) -> Any:
    both = _bytes(builder, w, builder.mul(group, ir.Constant(group.type, GROUP // 2)))
    start = builder.mul(group, ir.Constant(group.type, GROUP))
    words = builder.bitcast(both, _W16)
    high = builder.bitcast(builder.lshr(words, _fill(_W16, 4)), _B32)
    for half, part in ((0, both), (32, high)):
        offset = builder.add(start, ir.Constant(group.type, half))
        total = _unsigned(builder, total, builder.and_(part, _fill(_B32, 15)), _bytes(builder, x, offset))
    return total


def _vector_dot(product: Any) -> Any:
    """sum over groups of w scale x x scale x (correction + products)."""

    @intrinsic
    def dot(typing: Any, w: Any, w_scales: Any, x: Any, x_scales: Any, corrections: Any, groups: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = (_I8, _F32, _I8, _F32, _I32)
            weights, ws, numbers, xs, corr = (
                builder.inttoptr(arg, kind.as_pointer()) for arg, kind in zip(args, kinds)
            )
            sums = cgutils.alloca_once_value(builder, ir.Constant(_F8, [0.0] * 8))
            with cgutils.for_range(builder, args[5]) as loop:
                group = loop.index
                first = builder.load(builder.gep(corr, [group]))
                total = builder.insert_element(_fill(_D8, 0), first, ir.Constant(_I32, 0))
                total = product(builder, weights, numbers, group, total)
                scale = builder.fmul(builder.load(builder.gep(ws, [group])), builder.load(builder.gep(xs, [group])))
                one = builder.insert_element(ir.Constant(_F8, ir.Undefined), scale, ir.Constant(_I32, 0))
                spread = builder.shuffle_vector(one, ir.Constant(_F8, ir.Undefined), _fill(_D8, 0))
                part = builder.fmul(builder.sitofp(total, _F8), spread, flags=("contract",))
                builder.store(builder.fadd(builder.load(sums), part, flags=("contract",)), sums)
            return _total(builder, builder.load(sums))

        return types.float32(*[types.int64] * 6), generate

    return dot


@compiled
def _plain8(w: int, w_scales: int, x: int, x_scales: int, corrections: int, groups: int) -> F32:
    weights, numbers, ws, xs, corr = i8(w), i8(x), f32(w_scales), f32(x_scales), i32(corrections)
    out = np.float32(0)
    for g in range(groups):
        total = np.int32(corr[g])
        for c in range(g * GROUP, (g + 1) * GROUP):
            total += np.int32(weights[c]) * np.int32(numbers[c])
        out += ws[g] * xs[g] * np.float32(total)
    return out


@compiled
def _plain4(w: int, w_scales: int, x: int, x_scales: int, corrections: int, groups: int) -> F32:
    weights, numbers, ws, xs, corr = u8(w), i8(x), f32(w_scales), f32(x_scales), i32(corrections)
    out = np.float32(0)
    for g in range(groups):
        total = np.int32(corr[g])
        for j in range(GROUP // 2):
            both, c = np.int32(weights[g * GROUP // 2 + j]), g * GROUP + j
            total += (both & 15) * np.int32(numbers[c]) + (both >> 4) * np.int32(numbers[c + GROUP // 2])
        out += ws[g] * xs[g] * np.float32(total)
    return out


dot8 = _plain8 if INSTRUCTIONS == "portable" else _vector_dot(_group8)
dot4 = _plain4 if INSTRUCTIONS == "portable" else _vector_dot(_group4)


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
                    for row, totals in zip(rows, sums):
                        product = builder.fmul(weight, _sixteen(builder, row, offset), flags=("contract",))
                        total = builder.fadd(builder.load(totals[part]), product, flags=("contract",))
                        builder.store(total, totals[part])
            ends = []
            for row, totals in zip(rows, sums):
                whole = builder.load(totals[0])
                for total in totals[1:]:
                    whole = builder.fadd(whole, builder.load(total))
                ends.append(cgutils.alloca_once_value(builder, _total(builder, whole)))
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


dot32, four_dots32 = _row_dots(1), _row_dots(4)


@compiled
def quantise_row(x: int, columns: int, kind: int, out: int, scales: int, corrections: int, groups: int) -> None:
    """A row of numbers as int8: value = scale x byte, a scale for each group of 64; padded with zeros."""
    numbers, q, s, corr = f32(x), i8(out), f32(scales), i32(corrections)
    shift = np.int32(SHIFT8 if kind == INT8 else SHIFT4)
    for g in range(groups):
        start, stop = g * GROUP, min((g + 1) * GROUP, columns)
        largest = np.float32(0)
        for c in range(start, stop):
            largest = max(largest, abs(numbers[c]))
        scale = largest / np.float32(127)
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        total = np.int32(0)
        for c in range(start, stop):
            value = np.int32(np.rint(numbers[c] * inverse))
            q[c] = np.int8(value)
            total += value
        for c in range(stop, (g + 1) * GROUP):
            q[c] = np.int8(0)
        s[g] = scale
        corr[g] = -shift * total
