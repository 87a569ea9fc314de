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
    """Within this context the linear layers of a CPU multiply factors rounded to bf16 and add in fp32.

    Processors with matrix units for bf16 do that several times as fast; tensors stay fp32, so nothing is cast. Only the
    linear layers do it: torch's attention is slower that way.
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
    """The switch that torch has for this, on for the products within if `use` is true."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if use:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class _RoughLinear(torch.autograd.Function):
    """A linear layer whose three products, forward and backward, all run under the switch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with matrix_unit(True):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        with matrix_unit(True):
            dx = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
            dweight = rows.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return dx, dweight, rows.sum(0) if ctx.needs_input_grad[2] else None


def linear(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Tensor | None = None
) -> Float[Tensor, "... E"]:
    """`x @ weight.T + bias`."""
    if is_deterministic():
        return _linear_in_blocks(x, weight, bias)
    if _PRODUCTS.get() == "bf16":
        return _RoughLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    padded = F.pad(rows, (0, 0, 0, -count % _ROWS))
    blocks = [F.linear(block.contiguous(), weight, bias) for block in padded.split(_ROWS)]
    return torch.cat(blocks)[:count].reshape(*x.shape[:-1], weight.shape[0])
