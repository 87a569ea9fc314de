"""Root mean square normalisation (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rms_norm_reference(x: Tensor, eps: float) -> Tensor:
    """The plain form of `rms_norm`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """`x` divided by the root of its mean square along the last axis."""
    if x.device.type != "cpu":
        return F.rms_norm(x, (x.shape[-1],), eps=eps)
    return _RMSNorm.apply(x, eps)


class _RMSNorm(torch.autograd.Function):
    """On a CPU torch composes this of elementwise passes; here each direction is two reductions and two passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        y, inverse = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(inverse), None
