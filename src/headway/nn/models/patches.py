"""Image embeddings: patches as tokens (Dosovitskiy et al. 2021), optionally with a convolutional stem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import deferred_check, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.parts.convolution import ImageConvolution
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS
from headway.nn.parts.histograms import HistogramStem
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.projection import Projection


class ConvolutionalStem(nn.Module):
    """`halvings` 3 x 3 convolutions with stride 2, each followed by `more` with stride 1, all with a norm over channels
    and GELU; then a linear layer.

    Channels double up to the width, as in Xiao et al. 2021, table 2. The paper normalises over the batch; here each
    position is normalised by itself, so that an image's vectors do not depend on other images.
    """

    def __init__(self, channels: int, width: int, halvings: int, more: int = 0) -> None:
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        self.positions_per_patch: list[int] = []  # output positions of each convolution per patch
        for remaining in reversed(range(halvings)):
            out_channels = width >> remaining
            for stride in (2, *(1,) * more):
                self.convolutions.append(ImageConvolution(channels, out_channels, stride=stride, bias=False))
                self.norms.append(LayerNormConfig().build(out_channels))
                self.positions_per_patch.append(4**remaining)
                channels = out_channels
        self.activation = ACTIVATIONS["gelu"]
        self.project = Projection(width, width)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """One vector per patch of 2^halvings x 2^halvings pixels, row by row."""
        x = images.permute(0, 2, 3, 1)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = self.activation(norm(convolution(x)))
        return self.project(x).flatten(1, 2)

    @property
    def flop(self) -> int:
        """Operations per patch beyond one multiplication per weight: early convolutions run at more positions."""
        sizes = [convolution.product.weight.numel() for convolution in self.convolutions]  # type: ignore[union-attr]
        return sum(2 * size * (positions - 1) for size, positions in zip(sizes, self.positions_per_patch))


Grid = tuple[int, int]  # rows and columns of patches


@register("patches")
@deferred_check
@dataclass(frozen=True)
class PatchEmbedConfig(EmbedConfig):
    """Images [B, `channels`, H, W], cut into patches of `patch` (height, width) pixels, row by row.

    `tokens` learned vectors with their own positions precede the patches: the first is the class token, the second the
    distillation token (Touvron et al. 2021). `registers` come between these and the patches and have no positions
    (Darcet et al. 2024). Positions are learned for images of `size` (height, width) and interpolated for other sizes.
    A `convolutional` stem replaces the linear layer: it sees across patch borders and learns faster from few images
    (Xiao et al. 2021). It halves the image repeatedly, with `stem_more` further convolutions after each halving. A
    stem of `histograms` describes a patch by the directions of edges in its `cells` x `cells` parts and by its colours,
    for data sets too small to learn such features.
    """

    patch: tuple[int, int] = (16, 16)  # height and width of a patch in pixels
    size: tuple[int, int] = (224, 224)  # height and width of the images for which positions are learned
    channels: int = 3  # 3 for colour, 1 for grey
    tokens: int = 1  # learned vectors before the patches
    registers: int = 0  # learned vectors without positions
    bias: bool = True  # whether the layer over pixels has a bias
    norm: NormConfig | None = None  # norm after the sum
    dropout: float = 0.0  # dropout rate of the sum
    stem: Literal["linear", "convolutional", "histograms"] = "linear"  # a linear layer, convolutions or histograms
    stem_more: int = 0  # convolutions with stride 1 after each halving
    cells: int = 1  # parts per row and column of a patch, for histograms

    def __post_init__(self) -> None:
        if min(*self.patch, *self.size, self.channels) < 1 or min(self.tokens, self.registers, self.stem_more) < 0:
            raise ConfigError(
                f"patch={_format_size(self.patch)}, channels={self.channels}, size={_format_size(self.size)}, "
                f"tokens={self.tokens}, registers={self.registers} and stem_more={self.stem_more}: sizes and channels "
                "must be above 0, other counts at least 0"
            )
        if any(length % part for length, part in zip(self.size, self.patch)):
            rows, columns = (max(1, round(length / part)) * part for length, part in zip(self.size, self.patch))
            raise ConfigError(
                f"images of {_format_size(self.size)} do not split into {_format_size(self.patch)} patches; "
                f"set multiples of the patch, such as {_format_size((rows, columns))}"
            )
        length = self.patch[0]
        if self.stem == "convolutional" and (length != self.patch[1] or length < 2 or length & (length - 1)):
            raise ConfigError(
                f"a convolutional stem halves images, so patches of {_format_size(self.patch)} are impossible; "
                "set squares of 2, 4, 8, 16 or 32 pixels, or stem=linear"
            )
        if self.cells < 1 or any(part % self.cells for part in self.patch):
            raise ConfigError(
                f"cells={self.cells} does not divide patches of {_format_size(self.patch)}; choose a common divisor"
            )

    @property
    def length(self) -> int:
        """Tokens of an image of `size`."""
        rows, columns = self.grid(self.size)
        return self.tokens + self.registers + rows * columns

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches in an image of `size`. Raises UserError if it does not divide into patches."""
        if any(length % part or length < part for length, part in zip(size, self.patch)):
            raise UserError(
                f"an image of {_format_size(size)} pixels does not split into {_format_size(self.patch)} patches; "
                "resize it to multiples of the patch"
            )
        return size[0] // self.patch[0], size[1] // self.patch[1]

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"images of {self.size[0]} x {self.size[1]} ({self.length} tokens) or other sizes"

    def summary(self) -> str:
        registers = f", {self.registers} registers" if self.registers else ""
        stem = {"convolutional": ", convolutional stem", "histograms": ", histograms"}.get(self.stem, "")
        return f"patches {self.patch[0]} x {self.patch[1]}{stem}, {self.tokens} learned tokens{registers}"

    def build(self, width: int, vocab_size: int, context: int | None) -> PatchEmbed:
        return PatchEmbed(self, width)


class PatchEmbed(Embed):
    """Patches to vectors by a linear layer or a convolutional stem, learned tokens before them, positions.

    The linear layer is a convolution whose stride is its size; `project.weight` is [D, C P Q].
    """

    def __init__(self, config: PatchEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.stem, self.project, patch_size = None, None, config.patch[0]
        if config.stem == "linear":
            self.project = Projection(config.channels * config.patch[0] * config.patch[1], width, config.bias)
        elif config.stem == "histograms":
            self.stem = HistogramStem(config.channels, width, config.patch, config.cells)
        elif width % (patch_size // 2):
            raise ConfigError(
                f"a convolutional stem over patches of {patch_size} pixels doubles its channels up to the width, and "
                f"{width} is not a multiple of {patch_size // 2}; choose a model.width that is"
            )
        else:
            self.stem = ConvolutionalStem(config.channels, width, patch_size.bit_length() - 1, config.stem_more)
        self.tokens = LearnedVectors(config.tokens, width) if config.tokens else None
        self.registers = LearnedVectors(config.registers, width) if config.registers else None
        self.positions = GridPositions(config.tokens, config.grid(config.size), width)
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def default_layout(self, images: Float[Tensor, "B C H W"]) -> Layout:
        """One document per image. Raises UserError for images that do not divide into this model's patches."""
        rows, columns = self._grid(images)
        config = self.config
        length = config.tokens + config.registers + rows * columns
        return Layout.full(images.shape[0], length, device=images.device)

    def forward(self, images: Float[Tensor, "B C H W"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        token_positions, patch_positions = self.positions(self._grid(images))
        if self.stem is not None:
            x = self.stem(images)
        else:
            assert self.project is not None  # one of the two always exists
            height, width = self.config.patch
            patches = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, C, rows, P, columns, Q]
            x = self.project(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        x = x + patch_positions
        parts = [x] if self.registers is None else [self.registers(x), x]
        if self.tokens is not None:
            parts = [self.tokens(x) + token_positions, *parts]
        return self.dropout(self.norm(torch.cat(parts, 1))), layout

    def _grid(self, images: Float[Tensor, "B C H W"]) -> Grid:
        if images.shape[1] != self.config.channels:
            raise UserError(
                f"images have {images.shape[1]} channels, but the model takes {self.config.channels}; "
                "convert them (3 channels are red, green and blue)"
            )
        return self.config.grid((images.shape[2], images.shape[3]))


class LearnedVectors(nn.Module):
    """Learned vectors that are the same for every input."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def forward(self, like: Float[Tensor, "B T D"]) -> Float[Tensor, "B N D"]:
        return self.table.expand(like.shape[0], -1, -1)


class GridPositions(nn.Module):
    """A vector for each of `front` tokens, then for each patch of a grid, row by row: `table` is [N + rows columns, D].

    For another grid the patch positions are resized like an image (Dosovitskiy et al. 2021, section 3.2), bicubically
    as in published models.
    """

    def __init__(self, front: int, grid: Grid, width: int) -> None:
        super().__init__()
        self.front, self.grid = front, grid
        self.table = nn.Parameter(torch.empty(front + grid[0] * grid[1], width))

    def forward(self, grid: Grid) -> tuple[Float[Tensor, "N D"], Float[Tensor, "T D"]]:
        front, patches = self.table[: self.front], self.table[self.front :]
        if grid == self.grid:
            return front, patches
        return front, resize_positions(patches, self.grid, grid)


def resize_positions(positions: Float[Tensor, "N D"], before: Grid, after: Grid) -> Float[Tensor, "M D"]:
    """Interpolate the position vectors of a grid's patches, row by row, to another grid."""
    image = positions.unflatten(0, before).permute(2, 0, 1)[None]
    return F.interpolate(image, size=after, mode="bicubic", align_corners=False)[0].flatten(1).t()


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
