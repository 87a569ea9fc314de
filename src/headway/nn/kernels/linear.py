"""Matrix products: exact, with factors rounded to bf16, or with rows that do not depend on their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ROWS = 16  # the fixed block height: one shape of product, whatever the batch, so one order of summation
# On AMD's processors what torch's products of a row add up first depends on where in a line of memory it begins.
_COLUMNS = 16
_LEAST_ROWS = 64  # below, rounding the weights costs more than the product gains
_DETERMINISTIC: ContextVar[bool] = ContextVar("deterministic", default=False)

Products = Literal["fp32", "bf16"]
_PRODUCTS: ContextVar[Products] = ContextVar("products", default="fp32")


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Within this context a row's result is the same alone, in a batch, in a prompt or step by step.

    BLAS chooses its kernel, and with it the order of summation, by the shape of the whole product. Here products run
    in blocks of fixed shape and attention runs row by row over exactly the visible keys. It is slower:
    docs/deterministic.md has the price.
    """
    token = _DETERMINISTIC.set(enabled)
    try:
        yield
    finally:
        _DETERMINISTIC.reset(token)


def is_deterministic() -> bool:
    return _DETERMINISTIC.get()


@contextmanager
def products(kind: Products) -> Iterator[None]:
    """Within this context linear layers, the cross-entropy's products and attention without a mask, on a CPU, round
    their factors to bf16, for processors that multiply those faster (`headway.learn.precision`).

    Products add in fp32 and round their results; all tensors around them stay fp32, but for those between the two
    products of a feed-forward layer. Recurrences and convolutions use torch's switch (`matrix_unit`).
    """
    token = _PRODUCTS.set(kind)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def are_products_rough() -> bool:
    return _PRODUCTS.get() == "bf16"


@contextmanager
def matrix_unit(use: bool) -> Iterator[None]:
    """torch's switch by which a matrix unit rounds the factors of fp32 products itself, on within if `use` is true.

    For many small products, whose factors would have to be rounded one by one. Without a matrix unit it does nothing.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if use:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class _RoughLinear(torch.autograd.Function):
    """A linear layer whose three products, forward and backward, multiply factors rounded to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rounded: bool) -> Tensor:
        rough, matrix = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rough, matrix)
        ctx.kinds = x.dtype, weight.dtype
        y = F.linear(rough, matrix, None if bias is None else bias.bfloat16())
        return y if rounded else y.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        kind, kept = ctx.kinds
        rows = gradient.reshape(-1, gradient.shape[-1]).bfloat16()
        dx = (rows @ weight).view_as(x).to(kind) if ctx.needs_input_grad[0] else None
        dweight = (rows.T @ x.reshape(-1, x.shape[-1])).to(kept) if ctx.needs_input_grad[1] else None
        return dx, dweight, rows.sum(0).to(kept) if ctx.needs_input_grad[2] else None, None


def linear(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Tensor | None = None, rounded: bool = False
) -> Float[Tensor, "... E"]:
    """`x @ weight.T + bias`. Where factors are rounded to bf16, a `rounded` result stays so, for what goes into the
    next product anyway.
    """
    if is_deterministic():
        rows, more = x.reshape(-1, x.shape[-1]), -x.shape[-1] % _COLUMNS
        padded = F.pad(rows, (0, more, 0, -rows.shape[0] % _ROWS))
        wide = F.pad(weight, (0, more)) if more else weight
        blocks = [F.linear(block.contiguous(), wide, bias) for block in padded.split(_ROWS)]
        return torch.cat(blocks)[: rows.shape[0]].reshape(*x.shape[:-1], weight.shape[0])
    if are_products_rough() and x.numel() >= _LEAST_ROWS * x.shape[-1]:
        return _RoughLinear.apply(x, weight, bias, rounded)
    return F.linear(x, weight, bias)
