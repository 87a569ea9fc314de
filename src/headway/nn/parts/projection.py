"""The one linear layer of the house: several matrices fused into one product, each still known by its name; and
convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.kernels.convolution import convolve
from headway.nn.kernels.linear import linear

_FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}
_PLAIN = {"out": "o"}


class Projection(nn.Module):
    """Linear maps from one width to several, as one matrix product.

    `slices` are the output widths of the fused maps (query, key, value; gate, up): optimisers, adapters and published
    formats work slice by slice. `bias` may be said slice by slice (Whisper's keys have none); the parameter holds those
    that there are, one after the other. `writes` marks a map whose output is added to the residual stream, `recurrent`
    one from a network's state to its next, which initialisation treats apart. Weights are made by
    `headway.nn.parts.init`.
    """

    def __init__(
        self,
        width: int,
        slices: int | Sequence[int],
        bias: bool | Sequence[bool] = True,
        writes: bool = False,
        recurrent: bool = False,
    ) -> None:
        super().__init__()
        self.slices = (slices,) if isinstance(slices, int) else tuple(slices)
        self.biased = (bias,) * len(self.slices) if isinstance(bias, bool) else tuple(bias)
        self.writes = writes
        self.recurrent = recurrent
        self.weight = nn.Parameter(torch.empty(sum(self.slices), width))
        self.weight.slices = self.slices  # type: ignore[attr-defined]
        held = sum(size for size, has in zip(self.slices, self.biased) if has)
        self.bias = nn.Parameter(torch.zeros(held)) if held else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return linear(x, self.weight, None if self.bias is None else self.offset())

    def matrix(self) -> Float[Tensor, "E D"]:
        """The map as a matrix, with what adapters add to it, for those who multiply by it many times."""
        if not self._forward_hooks:
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


class Convolution(nn.Module):
    """Each output sees `taps` neighbouring inputs, the middle one its own; every `stride`-th output is computed.

    It is one matrix product: the weight of `product` is [D, C taps], a published kernel [D, C, taps] laid flat.
    """

    def __init__(self, channels: int, width: int, taps: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.taps, self.stride = taps, stride
        self.product = Projection(channels * taps, width)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B S D"]:
        """S is T / stride, rounded up."""
        around = F.pad(x, (0, 0, self.taps // 2, self.taps // 2))
        return self.product(around.unfold(1, self.taps, self.stride).flatten(2))


class DoublingConvolution(nn.Module):
    """A transposed convolution of 4 taps: two outputs for each input, each of which sees two inputs.

    It is one matrix product: the weight of `product` is [D taps, C], a published kernel [C, D, taps] laid flat and
    transposed. Past the edges are zeros.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.product = Projection(channels, 4 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B S D"]:
        """S is 2 T."""
        first, second, third, last = self.product(x).unflatten(-1, (-1, 4)).unbind(-1)
        before, after = F.pad(last, (0, 0, 1, -1)), F.pad(first, (0, 0, -1, 1))
        return torch.stack([second + before, third + after], 2).flatten(1, 2) + self.bias


class ImageConvolution(nn.Module):
    """The same over rows and columns: each output sees `taps` x `taps` inputs, and past the edges zeros; not `padded`,
    there are no outputs that would.

    The weight of `product` is [D, taps taps C], a kernel [D, C, taps, taps] with its channels last, laid flat.
    """

    def __init__(
        self, channels: int, width: int, taps: int = 3, stride: int = 1, bias: bool = True, padded: bool = True
    ) -> None:
        super().__init__()
        self.taps, self.stride, self.reach = taps, stride, taps // 2 if padded else 0
        self.product = Projection(channels * taps * taps, width, bias)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        """h and w are H and W by the stride, rounded up; not padded (H - taps) / stride + 1, rounded down."""
        bias = None if self.product.bias is None else self.product.offset()
        return convolve(x, self.product.matrix(), bias, self.taps, self.stride, self.reach)
