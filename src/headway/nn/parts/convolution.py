"""Convolutions over time and over images, each as one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.kernels.convolution import convolve
from headway.nn.parts.projection import Projection


class Convolution(nn.Module):
    """A centred convolution over time with kernel size `taps` and a stride.

    It is one matrix product: the weight of `product` is [D, C taps], a published kernel [D, C, taps] flattened.
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
    """A transposed convolution with kernel size 4 and stride 2: each of its outputs depends on two inputs.

    It is one matrix product: the weight of `product` is [D taps, C], a published kernel [C, D, taps] flattened and
    transposed. The edges are padded with zeros.
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
    """A convolution over rows and columns with kernel size `taps` x `taps`, zero-padded at the edges unless `padded` is
    false.

    The weight of `product` is [D, taps taps C], a kernel [D, C, taps, taps] with its channels last, flattened.
    """

    def __init__(
        self, channels: int, width: int, taps: int = 3, stride: int = 1, bias: bool = True, padded: bool = True
    ) -> None:
        super().__init__()
        self.taps, self.stride, self.reach = taps, stride, taps // 2 if padded else 0
        self.product = Projection(channels * taps * taps, width, bias)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        """h and w are H and W / stride, rounded up; without padding (H - taps) / stride + 1, rounded down."""
        bias = None if self.product.bias is None else self.product.offset()
        return convolve(x, self.product.matrix(), bias, self.taps, self.stride, self.reach)
