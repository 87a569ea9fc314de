"""The one linear layer of the house: several matrices fused into one product, each still known by its slice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.kernels import linear


class Projection(nn.Module):
    """Linear maps from one width to several, as one matrix product.

    `slices` are the output widths of the fused maps (query, key, value; gate, up): optimisers, adapters and published
    formats work slice by slice. `writes` marks a map whose output is added to the residual stream, which initialisation
    treats apart. Weights are made by `headway.parts.init`.
    """

    def __init__(self, width: int, slices: int | Sequence[int], bias: bool = True, writes: bool = False) -> None:
        super().__init__()
        self.slices = (slices,) if isinstance(slices, int) else tuple(slices)
        self.writes = writes
        self.weight = nn.Parameter(torch.empty(sum(self.slices), width))
        self.weight.slices = self.slices  # type: ignore[attr-defined]
        self.bias = nn.Parameter(torch.zeros(sum(self.slices))) if bias else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        outputs = "+".join(map(str, self.slices))
        return f"{self.weight.shape[1]} -> {outputs}, bias={self.bias is not None}"
