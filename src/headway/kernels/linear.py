"""Matrix products, and the deterministic mode in which a row's result does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ROWS = 16  # the fixed block height: one shape of product, whatever the batch, so one order of summation
_DETERMINISTIC: ContextVar[bool] = ContextVar("deterministic", default=False)


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


def linear(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Tensor | None = None
) -> Float[Tensor, "... E"]:
    """`x @ weight.T + bias`."""
    if not is_deterministic():
        return F.linear(x, weight, bias)
    return _linear_in_blocks(x, weight, bias)


def _linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    padded = F.pad(rows, (0, 0, 0, -count % _ROWS))
    blocks = [F.linear(block.contiguous(), weight, bias) for block in padded.split(_ROWS)]
    return torch.cat(blocks)[:count].reshape(*x.shape[:-1], weight.shape[0])
