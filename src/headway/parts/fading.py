"""How much of a memory stays and how much is written: numbers between 0 and 1, one a head and token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.kernels.pointwise import pointwise
from headway.parts.projection import Projection

_SLOWEST, _FASTEST = 1e-3, 1e-1  # shares of a memory that the heads lose a token at the start


class Strength(nn.Module):
    """sigmoid(w x + b) for each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.project = Projection(width, heads)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        return pointwise(torch.sigmoid, self.project(x))


class LogDecay(nn.Module):
    """log a = -exp(r) softplus(w x + b) for each head (Gu and Dao 2023; Yang et al. 2024, gated delta networks).

    b starts where the heads lose from 0.1 % to 10 % of their memory a token, evenly in the logarithm.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.project = Projection(width, heads, bias=False)
        self.rate = nn.Parameter(torch.zeros(heads))
        steps = torch.linspace(math.log(_SLOWEST), math.log(_FASTEST), heads).exp()
        self.step = nn.Parameter(steps.expm1().log())  # the inverse of softplus

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        return -self.rate.exp() * pointwise(F.softplus, self.project(x) + self.step)
