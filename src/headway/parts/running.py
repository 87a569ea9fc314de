"""Numbers brought to one scale by all that was seen of them so far."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_EPS = 1e-8  # beside a variance


class RunningNorm(nn.Module):
    """Numbers less their mean, divided by their standard deviation, and kept within `reach` of 0.

    Mean and variance are those of all that `see` was given, and change there alone; they are saved with the weights,
    and are no parameters.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, reach: float = 10.0) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
        scaled = (x - self.mean) * (self.variance + _EPS).rsqrt()
        return scaled.clamp(-self.reach, self.reach)

    @torch.no_grad()
    def see(self, x: Float[Tensor, "N S"]) -> None:
        """Take N more into account (Chan, Golub and LeVeque 1979, equation 2.1)."""
        before, new = self.count, float(len(x))
        total = before + new
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        shift = mean - self.mean
        squares = before * self.variance + new * variance + shift.square() * (before * new / total)
        self.mean += shift * (new / total)
        self.variance.copy_(squares / total)
        self.count += new
