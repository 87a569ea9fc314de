"""Headway's linear layer: several matrices fused into one product, each still addressable by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.kernels.linear import linear

_FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}
_PLAIN = {"out": "o"}


class Projection(nn.Module):
    """Linear maps from one width to several, as one matrix product.

    `slices` are the output widths of the fused maps (query, key, value; gate, up): optimisers, adapters and published
    formats work slice by slice. `bias` may be set per slice (Whisper's keys have none); the parameter concatenates the
    existing ones. `residual` marks a layer whose output is added to the residual stream, `recurrent` one from a state
    to the next; initialisation treats both differently. `inner` marks a layer with only an activation before the next
    product, so its output needs no more precision than that product's factors. `headway.nn.parts.init` initialises the
    weights.
    """

    def __init__(
        self,
        width: int,
        slices: int | Sequence[int],
        bias: bool | Sequence[bool] = True,
        residual: bool = False,
        recurrent: bool = False,
        inner: bool = False,
    ) -> None:
        super().__init__()
        self.slices = (slices,) if isinstance(slices, int) else tuple(slices)
        self.biased = (bias,) * len(self.slices) if isinstance(bias, bool) else tuple(bias)
        self.residual = residual
        self.recurrent = recurrent
        self.inner = inner
        self.weight = nn.Parameter(torch.empty(sum(self.slices), width))
        self.weight.slices = self.slices  # type: ignore[attr-defined]
        bias_size = sum(size for size, has in zip(self.slices, self.biased) if has)
        self.bias = nn.Parameter(torch.zeros(bias_size)) if bias_size else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return linear(x, self.weight, None if self.bias is None else self.offset(), self.inner)

    def product(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        """The product before the bias and adapters are added."""
        return linear(x, self.weight, bf16_output=self.inner)

    @property
    def is_hooked(self) -> bool:
        """Whether adapters are attached."""
        return bool(self._forward_hooks)

    def matrix(self) -> Float[Tensor, "E D"]:
        """The layer as a matrix, including adapters, for repeated multiplication."""
        if not self.is_hooked:
            return self.weight
        y = self(torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device))
        return (y - self.offset()).t()

    def offset(self) -> Float[Tensor, "E"]:
        """The bias, with zeros for slices without one."""
        if self.bias is None:
            return self.weight.new_zeros(self.weight.shape[0])
        if all(self.biased):
            return self.bias
        parts, start = [], 0
        for size, has in zip(self.slices, self.biased):
            parts.append(self.bias[start : start + size] if has else self.bias.new_zeros(size))
            start += size if has else 0
        return torch.cat(parts)

    def extra_repr(self) -> str:
        outputs = "+".join(map(str, self.slices))
        return f"{self.weight.shape[1]} -> {outputs}, bias={self.bias is not None}"


def slice_names(attribute: str, projection: Projection) -> tuple[str, ...]:
    """The names of a projection's fused maps, from its attribute name."""
    if len(projection.slices) == 1:
        return (_PLAIN.get(attribute, attribute),)
    return _FUSED.get(attribute) or tuple(f"{attribute}{i}" for i in range(len(projection.slices)))
