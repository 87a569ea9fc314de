"""GELU for training: value and derivative in one pass over memory, and the gradient in one backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from headway.engine.machine import announce_compilation, compiled, f32, intrinsic, types
from headway.engine.vectors import _FLOATS, _INTEGERS, LANES, _all, _sigmoid, constant, multiply_add
from headway.nn.kernels.pointwise import GeluPasses

_HALVES = ir.VectorType(ir.IntType(16), LANES)
_A, _B = 2 * 0.7978845608028654, 2 * 0.7978845608028654 * 0.044715
_FAR = 16.0  # beyond, the derivative is 0 or 1
_ROWS = 32  # rows summed before they are added to the total, which loses less precision


def _gelu_tanh_and_slope(builder: Any, x: Any) -> tuple[Any, Any]:
    """x s(v) of v = x t, t = a + b x^2, whose derivative is s + x s (1 - s) (3 t - 2 a), with the sigmoid s."""
    near = builder.select(builder.fcmp_ordered("<", x, _all(-_FAR)), _all(-_FAR), x)
    near = builder.select(builder.fcmp_ordered(">", near, _all(_FAR)), _all(_FAR), near)
    t = multiply_add(builder, builder.fmul(near, near), _all(_B), _all(_A))
    s = _sigmoid(builder, builder.fmul(near, t))
    rise = builder.fmul(builder.fmul(near, s), builder.fsub(_all(1.0), s))
    return builder.fmul(x, s), multiply_add(builder, rise, multiply_add(builder, t, _all(3.0), _all(-2 * _A)), s)


def _load(builder: Any, address: Any, bf16: bool) -> Any:
    """16 elements of fp32, or of bf16."""
    if not bf16:
        return builder.load(builder.inttoptr(address, _FLOATS.as_pointer()), align=4)
    halves = builder.load(builder.inttoptr(address, _HALVES.as_pointer()), align=2)
    wide = builder.shl(builder.zext(halves, _INTEGERS), constant(_INTEGERS, 16))
    return builder.bitcast(wide, _FLOATS)


def _store(builder: Any, x: Any, address: Any, bf16: bool) -> None:
    """As fp32, or as the nearest bf16, ties to even."""
    if not bf16:
        builder.store(x, builder.inttoptr(address, _FLOATS.as_pointer()), align=4)
        return
    bits, sixteen = builder.bitcast(x, _INTEGERS), constant(_INTEGERS, 16)
    odd = builder.and_(builder.lshr(bits, sixteen), constant(_INTEGERS, 1))
    bits = builder.add(builder.add(bits, constant(_INTEGERS, 0x7FFF)), odd)
    bits = builder.select(builder.fcmp_unordered("uno", x, x), constant(_INTEGERS, 0x7FC00000), bits)
    halves = builder.trunc(builder.lshr(bits, sixteen), _HALVES)
    builder.store(halves, builder.inttoptr(address, _HALVES.as_pointer()), align=2)


def _forward_sixteen(bf16: bool) -> Any:
    @intrinsic
    def apply(typing: Any, x: Any, bias: Any, value: Any, slope: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            shifted = builder.fadd(_load(builder, args[0], bf16), _load(builder, args[1], False))
            for values, address in zip(_gelu_tanh_and_slope(builder, shifted), args[2:]):
                _store(builder, values, address, bf16)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), generate

    return apply


def _backward_sixteen(bf16: bool) -> Any:
    @intrinsic
    def apply(typing: Any, gradient: Any, slope: Any, dx: Any, total: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            product = builder.fmul(*(_load(builder, address, bf16) for address in args[:2]))
            _store(builder, product, args[2], bf16)
            _store(builder, builder.fadd(_load(builder, args[3], False), product), args[3], False)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), generate

    return apply


_forward_exact, _forward_bf16 = _forward_sixteen(False), _forward_sixteen(True)
_backward_exact, _backward_bf16 = _backward_sixteen(False), _backward_sixteen(True)


@compiled
def _forward(x: int, bias: int, value: int, slope: int, rows: int, width: int, size: int) -> None:
    """Elements of `size` bytes, a multiple of 16 per row; the bias is in fp32."""
    for row in range(rows):
        for column in range(0, width, LANES):
            at = size * (row * width + column)
            if size == 4:
                _forward_exact(x + at, bias + 4 * column, value + at, slope + at)
            else:
                _forward_bf16(x + at, bias + 4 * column, value + at, slope + at)


@compiled
def _backward(
    gradient: int, slope: int, dx: int, total: int, partial_sums: int, rows: int, width: int, size: int
) -> None:
    """`total` and `partial_sums`, which starts with zeros, are in fp32."""
    totals, part = f32(total), f32(partial_sums)
    for first in range(0, rows, _ROWS):
        for row in range(first, min(first + _ROWS, rows)):
            for column in range(0, width, LANES):
                at = size * (row * width + column)
                if size == 4:
                    _backward_exact(gradient + at, slope + at, dx + at, partial_sums + 4 * column)
                else:
                    _backward_bf16(gradient + at, slope + at, dx + at, partial_sums + 4 * column)
        for column in range(width):
            totals[column] += part[column]
            part[column] = np.float32(0.0)


def _value_and_slope(x: Tensor, bias: Tensor, value: Tensor, slope: Tensor) -> None:
    addresses = [tensor.data_ptr() for tensor in (x, bias, value, slope)]
    with announce_compilation(_forward):
        _forward(*addresses, x.numel() // x.shape[-1], x.shape[-1], x.element_size())


def _gradients(gradient: Tensor, slope: Tensor, dx: Tensor, dbias: Tensor) -> None:
    partial_sums = torch.zeros_like(dbias)
    addresses = [tensor.data_ptr() for tensor in (gradient, slope, dx, dbias, partial_sums)]
    _backward(*addresses, dx.numel() // dx.shape[-1], dx.shape[-1], dx.element_size())


GELU_TANH = GeluPasses(_value_and_slope, _gradients)
