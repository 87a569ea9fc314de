"""From images to vectors: patches as tokens (Dosovitskiy et al. 2021), or convolutions before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import checked, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import EmbedConfig
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.projection import ImageConvolution, Projection


class ConvolutionalStem(nn.Module):
    """`halvings` convolutions of 3 x 3 with stride 2, after each of them `more` with stride 1, each with a norm over
    channels and GELU; then a linear map.

    Channels double up to the width, as in Xiao et al. 2021, table 2. They normalise over the batch; here each place is
    normalised by itself, so that an image's vectors hang on no other image.
    """

    def __init__(self, channels: int, width: int, halvings: int, more: int = 0) -> None:
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        self.places: list[int] = []  # of each convolution, for one patch
        for left in reversed(range(halvings)):
            after = width >> left
            for stride in (2, *(1,) * more):
                self.convolutions.append(ImageConvolution(channels, after, stride=stride, bias=False))
                self.norms.append(LayerNormConfig().build(after))
                self.places.append(4**left)
                channels = after
        self.activation = ACTIVATIONS["gelu"]
        self.project = Projection(width, width)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """A vector for each patch of 2^halvings x 2^halvings pixels, row by row."""
        x = images.permute(0, 2, 3, 1)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = self.activation(norm(convolution(x)))
        return self.project(x).flatten(1, 2)

    @property
    def flop(self) -> int:
        """Operations for one patch, beyond one multiplication of each weight: early convolutions see more places."""
        sizes = [convolution.product.weight.numel() for convolution in self.convolutions]  # type: ignore[union-attr]
        return sum(2 * size * (places - 1) for size, places in zip(sizes, self.places))


Grid = tuple[int, int]  # rows and columns of patches


@register("patches")
@checked
@dataclass(frozen=True)
class PatchEmbedConfig(EmbedConfig):
    """Images [B, `channels`, H, W], cut into patches of `patch` (height, width) pixels, row by row.

    `tokens` learned vectors stand before them, with positions of their own: 1 is the class token, a second one the
    distillation token (Touvron et al. 2021). `registers` stand between these and the patches and have no positions
    (Darcet et al. 2024). Positions are learned for images of `size` (height, width) and interpolated for others. `bias`
    is that of the map from pixels. A `convolutional` stem stands in the place of that map: it sees beyond the borders
    of patches, and learns sooner from few images (Xiao et al. 2021). It halves the image again and again, and has
    `stem_more` convolutions that keep its size after each halving.
    """

    patch: tuple[int, int] = (16, 16)  # height and width of a patch in pixels
    size: tuple[int, int] = (224, 224)  # height and width of the images that positions are learned for
    channels: int = 3  # 3 for colour, 1 for grey
    tokens: int = 1  # learned vectors before the patches
    registers: int = 0  # learned vectors without positions
    bias: bool = True  # of the map from pixels
    norm: NormConfig | None = None  # after the sum
    dropout: float = 0.0  # of the sum
    stem: Literal["linear", "convolutional"] = "linear"  # one map, or convolutions
    stem_more: int = 0  # convolutions that keep the size after each halving

    def __post_init__(self) -> None:
        if min(*self.patch, *self.size, self.channels) < 1 or min(self.tokens, self.registers, self.stem_more) < 0:
            raise ConfigError(
                f"patches of {_by(self.patch)} pixels in {self.channels} channels, images of {_by(self.size)}, "
                f"{self.tokens} tokens, {self.registers} registers, stem_more {self.stem_more}; "
                "give sizes above 0, and counts of 0 or more"
            )
        if any(side % part for side, part in zip(self.size, self.patch)):
            raise ConfigError(f"images of {_by(self.size)} are not whole {_by(self.patch)} patches; {self._near()}")
        side = self.patch[0]
        if self.stem == "convolutional" and (side != self.patch[1] or side < 2 or side & (side - 1)):
            raise ConfigError(
                f"a convolutional stem halves images, so it has no patches of {_by(self.patch)}; "
                "give squares of 2, 4, 8, 16 or 32 pixels, or stem=linear"
            )

    @property
    def length(self) -> int:
        """Tokens of an image of `size`."""
        rows, columns = self.grid(self.size)
        return self.tokens + self.registers + rows * columns

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches of an image of `size`. UserError where they do not fill it."""
        if any(side % part or side < part for side, part in zip(size, self.patch)):
            raise UserError(
                f"an image of {_by(size)} pixels is not whole {_by(self.patch)} patches; "
                "resize it to multiples of the patch"
            )
        return size[0] // self.patch[0], size[1] // self.patch[1]

    def reads(self, symbols: int, context: int | None) -> str:
        return f"images of {self.size[0]} x {self.size[1]} ({self.length} tokens) or other sizes"

    def summary(self) -> str:
        registers = f", {self.registers} registers" if self.registers else ""
        stem = ", convolutional stem" if self.stem == "convolutional" else ""
        return f"patches {self.patch[0]} x {self.patch[1]}{stem}, {self.tokens} learned tokens{registers}"

    def build(self, width: int, symbols: int, context: int | None) -> PatchEmbed:
        return PatchEmbed(self, width)

    def _near(self) -> str:
        near = tuple(max(1, round(side / part)) * part for side, part in zip(self.size, self.patch))
        return f"give multiples of the patch, such as {_by((near[0], near[1]))}"


class PatchEmbed(nn.Module):
    """Patches to vectors by one linear map or a convolutional stem, learned tokens before them, positions.

    A convolution whose stride is its size is the linear map; `project.weight` is [D, C P Q].
    """

    def __init__(self, config: PatchEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.table = None  # there is no vocabulary to share
        pixels = config.channels * config.patch[0] * config.patch[1]
        linear = config.stem == "linear"
        self.stem = None if linear else _stem(config, width)
        self.project = Projection(pixels, width, config.bias) if linear else None
        self.tokens = Learnt(config.tokens, width) if config.tokens else None
        self.registers = Learnt(config.registers, width) if config.registers else None
        self.positions = GridPositions(config.tokens, config.grid(config.size), width)
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def whole(self, images: Float[Tensor, "B C H W"]) -> Layout:
        """Each image is one document. UserError for what cannot be cut into this model's patches."""
        rows, columns = self._grid(images)
        config = self.config
        length = config.tokens + config.registers + rows * columns
        return Layout.full(images.shape[0], length, device=images.device)

    def forward(self, images: Float[Tensor, "B C H W"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        front, places = self.positions(self._grid(images))
        x = self._vectors(images) + places
        parts = [x] if self.registers is None else [self.registers(x), x]
        if self.tokens is not None:
            parts = [self.tokens(x) + front, *parts]
        return self.dropout(self.norm(torch.cat(parts, 1))), layout

    def _vectors(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        if self.stem is not None:
            return self.stem(images)
        assert self.project is not None  # one of the two always exists
        return self.project(self._patches(images))

    def _patches(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """The pixels of each patch, channel by channel."""
        high, wide = self.config.patch
        cut = images.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # [B, C, rows, P, columns, Q]
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _grid(self, images: Float[Tensor, "B C H W"]) -> Grid:
        if images.shape[1] != self.config.channels:
            raise UserError(
                f"images of {images.shape[1]} channels in a model that reads {self.config.channels}; "
                "convert them (3 channels are red, green and blue)"
            )
        return self.config.grid((images.shape[2], images.shape[3]))


class Learnt(nn.Module):
    """Vectors that are the same in front of every input."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def forward(self, like: Float[Tensor, "B T D"]) -> Float[Tensor, "B N D"]:
        return self.table.expand(like.shape[0], -1, -1)


class GridPositions(nn.Module):
    """A vector for each of `front` tokens, then for each patch of a grid, row by row: `table` is [N + rows columns, D].

    For another grid those of the patches are an image that is resized (Dosovitskiy et al. 2021, section 3.2),
    bicubically, as published models do it.
    """

    def __init__(self, front: int, grid: Grid, width: int) -> None:
        super().__init__()
        self.front, self.grid = front, grid
        self.table = nn.Parameter(torch.empty(front + grid[0] * grid[1], width))

    def forward(self, grid: Grid) -> tuple[Float[Tensor, "N D"], Float[Tensor, "T D"]]:
        front, patches = self.table[: self.front], self.table[self.front :]
        if grid == self.grid:
            return front, patches
        return front, resized(patches, self.grid, grid)


def resized(places: Float[Tensor, "N D"], before: Grid, after: Grid) -> Float[Tensor, "M D"]:
    """The vectors of a grid's patches, row by row, for another grid."""
    image = places.unflatten(0, before).permute(2, 0, 1)[None]
    return F.interpolate(image, size=after, mode="bicubic", align_corners=False)[0].flatten(1).t()


def _stem(config: PatchEmbedConfig, width: int) -> ConvolutionalStem:
    side = config.patch[0]
    if width % (side // 2):
        raise ConfigError(
            f"a convolutional stem over patches of {side} pixels doubles its channels up to the width, and {width} is "
            f"no multiple of {side // 2}; choose a model.width that is"
        )
    return ConvolutionalStem(config.channels, width, side.bit_length() - 1, config.stem_more)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
