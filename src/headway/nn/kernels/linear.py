"""Matrix products: exact, with factors rounded to bf16, with weights stored in bf16, or deterministic with rows
independent of the batch; and the settings of kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import has_torch_function

T = TypeVar("T")


class ContextSetting(Generic[T]):
    """A value that holds inside the context `use(value)`, in the thread or task that entered it.

    torch.compile cannot trace a ContextVar. Traced code reads `latest`, which the thread that trains has set; it is
    compiled again when the value changes.
    """

    def __init__(self, name: str, default: T) -> None:
        self._variable, self.latest = ContextVar(name, default=default), default

    def get(self) -> T:
        return self.latest if torch.compiler.is_dynamo_compiling() else self._variable.get()

    @contextmanager
    def use(self, value: T) -> Iterator[None]:
        token, before = self._variable.set(value), self.latest
        self.latest = value
        try:
            yield
        finally:
            self._variable.reset(token)
            self.latest = before


_ROWS = 16  # fixed block height: one product shape for any batch, so one order of summation
# On AMD CPUs the order in which torch sums a row depends on its alignment in memory.
_COLUMNS = 16
_MIN_ROWS = 64  # with fewer rows, rounding the weights costs more than the product gains
_DETERMINISTIC = ContextSetting("deterministic", False)

Products = Literal["fp32", "bf16"]
_PRODUCTS: ContextSetting[Products] = ContextSetting("products", "fp32")


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Within this context a row's result is the same alone, in a batch, in a prompt or step by step.

    BLAS chooses its kernel, and thus the order of summation, by the shape of the whole product. Here products run in
    blocks of fixed shape and attention runs row by row over exactly the visible keys. This is slower:
    docs/explanation/deterministic.md has measurements.
    """
    with _DETERMINISTIC.use(enabled):
        yield


def is_deterministic() -> bool:
    return _DETERMINISTIC.get()


@contextmanager
def products(kind: Products) -> Iterator[None]:
    """Within this context linear layers, the cross-entropy's products and attention without a mask round their factors
    to bf16 on a CPU, for CPUs that multiply bf16 faster (`headway.learn.precision`).

    Products accumulate in fp32 and round their results; all other tensors stay in fp32, except between the two products
    of a feed-forward layer. Recurrences and convolutions use torch's switch, `matrix_unit`.
    """
    with _PRODUCTS.use(kind):
        yield


def are_products_bf16() -> bool:
    return _PRODUCTS.get() == "bf16"


class _BF16Linear(torch.autograd.Function):
    """A linear layer whose three products (forward and backward) round factors to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, bf16_output: bool) -> Tensor:
        inputs, matrix = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(inputs, matrix)
        ctx.kinds = x.dtype, weight.dtype
        y = F.linear(inputs, matrix, None if bias is None else bias.bfloat16())
        return y if bf16_output else y.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        input_dtype, weight_dtype = ctx.kinds
        rows = gradient.reshape(-1, gradient.shape[-1]).bfloat16()
        dx = (rows @ weight).view_as(x).to(input_dtype) if ctx.needs_input_grad[0] else None
        dweight = (rows.T @ x.reshape(-1, x.shape[-1])).to(weight_dtype) if ctx.needs_input_grad[1] else None
        return dx, dweight, rows.sum(0).to(weight_dtype) if ctx.needs_input_grad[2] else None, None


def is_stored_in_bf16(weight: Tensor) -> bool:
    """Whether a matrix is stored in bf16 for generation, next to vectors in fp32. Autocast chooses dtypes by itself."""
    return weight.dtype == torch.bfloat16 and not torch.is_autocast_enabled(weight.device.type)


def linear(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Tensor | None = None, bf16_output: bool = False
) -> Float[Tensor, "... E"]:
    """`x @ weight.T + bias`. If factors are rounded to bf16, `bf16_output` leaves the result in bf16, for an input of
    the next product.
    """
    if is_stored_in_bf16(weight):
        if not is_deterministic():
            from headway.nn.kernels.bf16_weights import product_of_bf16  # for generation

            return product_of_bf16(x, weight, bias, bf16_output)
        x, weight = x.float(), weight.float()
    if is_deterministic():
        rows, padding = x.reshape(-1, x.shape[-1]), -x.shape[-1] % _COLUMNS
        padded = F.pad(rows, (0, padding, 0, -rows.shape[0] % _ROWS))
        padded_weight = F.pad(weight, (0, padding)) if padding else weight
        blocks = [F.linear(block.contiguous(), padded_weight, bias) for block in padded.split(_ROWS)]
        return torch.cat(blocks)[: rows.shape[0]].reshape(*x.shape[:-1], weight.shape[0])
    # A weight of another class, such as a packed one, has a linear layer of its own.
    if are_products_bf16() and x.numel() >= _MIN_ROWS * x.shape[-1] and not has_torch_function((weight,)):
        return _BF16Linear.apply(x, weight, bias, bf16_output)
    return F.linear(x, weight, bias)
