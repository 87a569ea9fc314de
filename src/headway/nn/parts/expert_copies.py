"""Tokens moved to their experts and back, with sums in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _sum_copies(copies: Tensor, slots: Tensor, columns: range) -> Tensor:
    """Sum the rows of `copies` at each row of `slots`, in the order of `columns`: the same on every device."""
    first, *others = columns
    total = copies[slots[:, first]]
    for column in others:
        total = total + copies[slots[:, column]]
    return total


class Copies(torch.autograd.Function):
    """Rows of tokens, one per expert, sorted by expert. The gradient adds a token's copies, last expert first."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return tokens[rows]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slots,) = ctx.saved_tensors
        return _sum_copies(gradient, slots, range(slots.shape[1])[::-1]), None, None


class Sums(torch.autograd.Function):
    """The reverse of `Copies`: the sum of each token's copies, first expert first."""

    @staticmethod
    def forward(ctx: Any, copies: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _sum_copies(copies, slots, range(slots.shape[1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        return gradient[rows], None, None
