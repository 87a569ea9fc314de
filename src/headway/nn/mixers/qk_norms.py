"""Norms of queries and keys over all heads together, or with weights per head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.parts.norm import NormConfig


class WideQKNorm(nn.Module):
    """One norm over the queries of all heads together, and one over the keys."""

    def __init__(self, config: NormConfig, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.q, self.k = config.build(heads * size), config.build(groups * size)
        self.parts = (heads, groups)

    def forward(self, qk: Float[Tensor, "B T HG K"]) -> Float[Tensor, "B T HG K"]:
        q, k = qk.split(self.parts, dim=2)
        both = [norm(part.flatten(2)).view(part.shape) for norm, part in ((self.q, q), (self.k, k))]
        return torch.cat(both, dim=2)


class EachQKNorm(nn.Module):
    """A norm per head, and weights [H, K] and [G, K] that differ between heads (Cohere)."""

    def __init__(self, config: NormConfig, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.norm: Any = config.build(size)
        self.norm.weight = self.norm.bias = None
        self.q, self.k = (nn.Parameter(torch.ones(count, size)) for count in (heads, groups))

    def forward(self, qk: Float[Tensor, "B T HG K"]) -> Float[Tensor, "B T HG K"]:
        return self.norm(qk) * torch.cat([self.q, self.k])
