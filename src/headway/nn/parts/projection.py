"""The one linear layer of the house: several matrices fused into one product, each still known by its name."""

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
    formats work slice by slice. `bias` may be said slice by slice (Whisper's keys have none); the parameter holds those
    that there are, one after the other. `writes` marks a map whose output is added to the residual stream, `recurrent`
    one from a network's state to its next, which initialisation treats apart; `inner` one with nothing but an
    activation between it and the next product, so that its output need be no finer than that product's factors. Weights
    are made by `headway.nn.parts.init`.
    """

    def __init__(
        self,
        width: int,
        slices: int | Sequence[int],
        bias: bool | Sequence[bool] = True,
        writes: bool = False,
        recurrent: bool = False,
        inner: bool = False,
    ) -> None:
        super().__init__()
        self.slices = (slices,) if isinstance(slices, int) else tuple(slices)
        self.biased = (bias,) * len(self.slices) if isinstance(bias, bool) else tuple(bias)
        self.writes = writes
        self.recurrent = recurrent
        self.inner = inner
        self.weight = nn.Parameter(torch.empty(sum(self.slices), width))
        self.weight.slices = self.slices  # type: ignore[attr-defined]
        held = sum(size for size, has in zip(self.slices, self.biased) if has)
        self.bias = nn.Parameter(torch.zeros(held)) if held else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return linear(x, self.weight, None if self.bias is None else self.offset(), self.inner)

    def product(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        """What comes before the bias and what adapters add."""
        return linear(x, self.weight, rounded=self.inner)

    @property
    def is_hooked(self) -> bool:
        """Whether adapters add to it."""
        return bool(self._forward_hooks)

    def matrix(self) -> Float[Tensor, "E D"]:
        """The map as a matrix, with what adapters add to it, for those who multiply by it many times."""
        if not self.is_hooked:
            return self.weight
        y = self(torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device))
        return (y - self.offset()).t()

    def offset(self) -> Float[Tensor, "E"]:
        """The bias with zeros in the slices that have none."""
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
    """The plain names of the maps that a projection fuses, by the name that it has in its module."""
    if len(projection.slices) == 1:
        return (_PLAIN.get(attribute, attribute),)
    return _FUSED.get(attribute) or tuple(f"{attribute}{i}" for i in range(len(projection.slices)))
