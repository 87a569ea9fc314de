"""Frozen int8 and int4 matrices in training: products with fp32 inputs, and the gradient of the inputs.

Blocks of a matrix are unpacked into a buffer that fits a processor's cache, and multiplied by torch. No matrix is
unpacked as a whole, so memory holds the packed weights only, in the forward and in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.engine.packed_weights import PackedMatrix, PackedTensor, unpack_block
from headway.engine.tiles import GROUP, TILE
from headway.nn.kernels.linear import are_products_bf16

_BLOCK = 1 << 20  # floats unpacked at once: 4 MiB


class FrozenTensor(PackedTensor):
    """A packed matrix whose linear layer does not quantise its inputs and has a gradient for them, in training and in
    evaluation: Y = X W^T with the unpacked W (Dettmers et al. 2023, equation 5, without the adapter's term).
    """

    def linear(self, x: Float[Tensor, "... C"], bias: Tensor | None = None) -> Float[Tensor, "... R"]:
        y = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), self.packed).view(*x.shape[:-1], self.packed.rows)
        return y if bias is None else y + bias


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "N C"], packed: PackedMatrix) -> Float[Tensor, "N R"]:  # type: ignore[override]
        ctx.packed, ctx.dtype = packed, x.dtype
        y = x.new_empty(x.shape[0], packed.rows, dtype=torch.promote_types(x.dtype, torch.float32))
        inputs = x.to(torch.bfloat16 if are_products_bf16() else y.dtype)
        for rows, block in _row_blocks(packed):
            _multiply(inputs, block.T, y[:, rows])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "N R"]) -> tuple[Tensor, None]:  # type: ignore[override]
        packed = ctx.packed
        dx = gradient.new_empty(gradient.shape[0], packed.columns)
        factors = gradient.to(torch.bfloat16) if are_products_bf16() else gradient
        for columns, block in _column_blocks(packed):
            _multiply(factors, block, dx[:, columns])
        return dx.to(ctx.dtype), None


def _multiply(x: Float[Tensor, "N K"], block: Float[Tensor, "K M"], out: Float[Tensor, "N M"]) -> None:
    """out = x block, with both factors in the dtype of x."""
    if x.dtype == out.dtype == block.dtype:
        torch.mm(x, block, out=out)
    else:
        out.copy_(x @ block.to(x.dtype))


def _row_blocks(packed: PackedMatrix) -> Iterator[tuple[slice, Float[Tensor, "R C"]]]:
    """Rows of the matrix, a block after the other."""
    assert packed.scales is not None  # fp32 is never packed
    tiles, groups = packed.scales.shape[:2]
    step = max(1, _BLOCK // (TILE * groups * GROUP))
    buffer = torch.empty(min(step, tiles) * TILE, groups * GROUP)
    for first in range(0, tiles, step):
        count = min(step, tiles - first)
        unpack_block(packed, slice(first, first + count), slice(0, groups), buffer)
        rows = slice(first * TILE, min((first + count) * TILE, packed.rows))
        yield rows, buffer[: rows.stop - rows.start, : packed.columns]


def _column_blocks(packed: PackedMatrix) -> Iterator[tuple[slice, Float[Tensor, "R C"]]]:
    """Columns of the matrix, a block after the other, so that each element of a gradient is one sum."""
    assert packed.scales is not None  # fp32 is never packed
    tiles, groups = packed.scales.shape[:2]
    step = max(1, _BLOCK // (TILE * tiles * GROUP))
    buffer = torch.empty(tiles * TILE * min(step, groups) * GROUP)
    for first in range(0, groups, step):
        count = min(step, groups - first)
        block = buffer[: tiles * TILE * count * GROUP].view(tiles * TILE, count * GROUP)
        unpack_block(packed, slice(0, tiles), slice(first, first + count), block)
        columns = slice(first * GROUP, min((first + count) * GROUP, packed.columns))
        yield columns, block[: packed.rows, : columns.stop - columns.start]
