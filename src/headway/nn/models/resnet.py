"""Residual convolutional networks: images to a grid of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.parts.convolution import ImageConvolution

ResNetDepth = Literal[18, 34]
STRIDE = 32  # pixels between vectors, in both dimensions
_LAYERS: dict[ResNetDepth, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_CHANNELS = (64, 128, 256, 512)
_EPS = 1e-5
_GROUP_CHANNELS = 16  # channels per group of a group norm


class FrozenNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) with frozen statistics and scales: one factor and one offset per
    channel.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, start in (("weight", 1.0), ("bias", 0.0), ("mean", 0.0), ("variance", 1.0)):
            self.register_buffer(name, torch.full((channels,), start))

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        factor = self.weight * (self.variance + _EPS).rsqrt()
        return x * factor + (self.bias - self.mean * factor)


class GroupNorm(nn.Module):
    """Wu and He 2018: zero mean and unit variance over all positions of each group of neighbouring channels (the last
    axis), then scale and shift.
    """

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B ... D"]) -> Float[Tensor, "B ... D"]:
        return F.group_norm(x.movedim(-1, 1), self.groups, self.weight, self.bias).movedim(1, -1)


ResNetNorm = Literal["frozen", "group"]
_NORMS: dict[ResNetNorm, Callable[[int], nn.Module]] = {
    "frozen": FrozenNorm,
    "group": lambda channels: GroupNorm(channels // _GROUP_CHANNELS, channels),
}


class ResidualConvolutions(nn.Module):
    """He et al. 2016, figure 5, left: two convolutions with a skip connection, which is a 1 x 1 convolution if the
    shape changes.
    """

    def __init__(self, channels: int, width: int, stride: int, norm: ResNetNorm = "frozen") -> None:
        super().__init__()
        build_norm = _NORMS[norm]
        self.first = ImageConvolution(channels, width, 3, stride, bias=False)
        self.first_norm = build_norm(width)
        self.second = ImageConvolution(width, width, 3, bias=False)
        self.second_norm = build_norm(width)
        changed = stride != 1 or channels != width
        self.around = ImageConvolution(channels, width, 1, stride, bias=False) if changed else nn.Identity()
        self.around_norm = build_norm(width) if changed else nn.Identity()

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        y = self.first_norm(self.first(x)).relu()
        return (self.second_norm(self.second(y)) + self.around_norm(self.around(x))).relu()


class ResNet(nn.Module):
    """He et al. 2016, table 1, without the final pooling and layer: a vector of `width` for every 32 x 32 pixels.
    `norm` is a frozen batch norm, or a group norm over groups of 16 channels (Chi et al. 2023, section 3.2).
    """

    def __init__(self, depth: ResNetDepth, norm: ResNetNorm = "frozen") -> None:
        super().__init__()
        self.stem = ImageConvolution(3, _CHANNELS[0], 7, 2, bias=False)
        self.stem_norm = _NORMS[norm](_CHANNELS[0])
        self.layers = nn.ModuleList()
        before = _CHANNELS[0]
        for layer, (width, count) in enumerate(zip(_CHANNELS, _LAYERS[depth])):
            strides = [1 if layer == 0 else 2, *[1] * (count - 1)]
            sizes = [before, *[width] * (count - 1)]
            self.layers.append(
                nn.Sequential(
                    *(ResidualConvolutions(size, width, stride, norm) for size, stride in zip(sizes, strides))
                )
            )
            before = width
        self.width = before

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """h and w are H / 32 and W / 32, rounded up."""
        x = self.stem_norm(self.stem(images.movedim(1, -1))).relu()
        x = F.max_pool2d(x.movedim(-1, 1), 3, 2, 1).movedim(1, -1)
        for layer in self.layers:
            x = layer(x)
        return x


def list_blocks(depth: ResNetDepth) -> list[tuple[int, int, bool]]:
    """(layer, block, whether the skip connection is a convolution) of each block of a depth."""
    counts = _LAYERS[depth]
    return [(layer, n, layer > 0 and n == 0) for layer, count in enumerate(counts) for n in range(count)]


def block_channels(layer: int, block: int) -> tuple[int, int]:
    """Input and output channels of a block."""
    return _CHANNELS[max(0, layer - 1)] if block == 0 else _CHANNELS[layer], _CHANNELS[layer]
