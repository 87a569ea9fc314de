"""GELU for training: value and derivative in one pass over memory, and the gradient in one backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.engine.codegen import I16, Int, Value, kernel, vector
from headway.engine.machine import announce_compilation, compiled, f32
from headway.engine.vectors import FLOATS, INTEGERS, LANES, sigmoid, to_bf16
from headway.nn.kernels.pointwise import GeluPasses

_HALVES = vector(I16, LANES)
_A, _B = 2 * 0.7978845608028654, 2 * 0.7978845608028654 * 0.044715
_FAR = 16.0  # beyond, the derivative is 0 or 1
_ROWS = 32  # rows summed before they are added to the total, which loses less precision


def _gelu_tanh_and_slope(x: Value) -> tuple[Value, Value]:
    """x s(v) of v = x t, t = a + b x^2, whose derivative is s + x s (1 - s) (3 t - 2 a), with the sigmoid s."""
    near = (x < -_FAR).select(-_FAR, x)
    near = (near > _FAR).select(_FAR, near)
    t = (near * near).multiply_add(_B, _A)
    s = sigmoid(near * t)
    rise = near * s * (1.0 - s)
    return x * s, rise.multiply_add(t.multiply_add(3.0, -2 * _A), s)


def _load(address: Value, bf16: bool) -> Value:
    """16 elements of fp32, or of bf16."""
    if not bf16:
        return address.load(FLOATS, align=4)
    return (address.load(_HALVES, align=2).to(INTEGERS, "zext") << 16).to(FLOATS)


def _store(x: Value, address: Value, bf16: bool) -> None:
    """As fp32, or as the nearest bf16, ties to even."""
    if bf16:
        address.store(to_bf16(x).shift_unsigned(16).to(_HALVES, "trunc"), align=2)
    else:
        address.store(x, align=4)


def _forward_sixteen(bf16: bool) -> Any:
    @kernel
    def apply(x: Int, bias: Int, value: Int, slope: Int) -> None:
        values, slopes = _gelu_tanh_and_slope(_load(x, bf16) + _load(bias, False))
        _store(values, value, bf16)
        _store(slopes, slope, bf16)

    return apply


def _backward_sixteen(bf16: bool) -> Any:
    @kernel
    def apply(gradient: Int, slope: Int, dx: Int, total: Int) -> None:
        product = _load(gradient, bf16) * _load(slope, bf16)
        _store(product, dx, bf16)
        _store(_load(total, False) + product, total, False)

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
