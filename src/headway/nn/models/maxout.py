"""Maxout layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.parts.projection import Projection


class Maxout(nn.Module):
    """The larger of each pair of linear units (Goodfellow et al. 2013): the deep output of the GRU models of 2014."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.dense = Projection(width, 2 * units)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... U"]:
        return self.dense(x).unflatten(-1, (-1, 2)).amax(-1)
