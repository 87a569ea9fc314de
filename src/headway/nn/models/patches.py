"""Patches of images as tokens (Dosovitskiy et al. 2021), and the head that predicts the values of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from headway.config_kinds import deferred_check, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.heads import HeadConfig
from headway.nn.parts.convolution import ImageConvolution
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.projection import Projection

_DIRECTIONS = 8  # bins of an edge's direction, from 0 to 180 degrees
_MAX_LEVELS = 16  # bins per colour channel; a histogram has the third power of them
_HALF_RANGE = 2.0  # normalised pixels from minus to plus this value share the bins evenly
_EPSILON = 1e-6


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


def cut_patches(x: Shaped[Tensor, "B F H W"], height: int, width: int) -> Shaped[Tensor, "B N V"]:
    """The values of patches of `height` rows and `width` columns, row by row; in a patch by feature, row and column."""
    patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, F, rows, height, columns, width]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class HistogramStem(nn.Module):
    """A linear layer over three descriptions of each patch.

    The edges of each of `cells` x `cells` parts by direction, weighted by their strength (Dalal and Triggs 2005), and
    the colours of the patch, each channel in `levels` bins (Swain and Ballard 1991), both as square roots, whose
    distance is Hellinger's; and the mean colour of each part. Each description has mean square 1. With `hidden` units,
    the edges alone pass through a layer with GELU before, so that shapes are recognised whatever their colour.
    """

    def __init__(
        self, channels: int, width: int, patch: tuple[int, int], cells: int, levels: int, hidden: int = 0
    ) -> None:
        super().__init__()
        self.patch, self.cells, self.levels = patch, cells, levels
        edges = cells * cells * _DIRECTIONS
        self.hidden = Projection(edges, hidden) if hidden else None
        self.activation = ACTIVATIONS["gelu"]
        self.project = Projection((hidden or edges) + cells * cells * channels + levels**channels, width)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """One vector per patch, row by row."""
        means = cut_patches(self._by_cell(images.float()), self.cells, self.cells)
        kinds = [self._edges(images).sqrt(), self._colours(images).sqrt(), means]
        edges, *colours = (x / (x.square().mean(-1, keepdim=True) + _EPSILON).sqrt() for x in kinds)
        if self.hidden is not None:
            edges = self.activation(self.hidden(edges.to(images.dtype)))
        return self.project(torch.cat([edges, *colours], -1).to(images.dtype))

    def _edges(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        grey = images.float().mean(1)
        across = F.pad(grey[:, :, 2:] - grey[:, :, :-2], (1, 1))
        down = F.pad(grey[:, 2:] - grey[:, :-2], (0, 0, 1, 1))
        direction = (torch.atan2(down, across) / torch.pi % 1 * _DIRECTIONS).long().clamp(max=_DIRECTIONS - 1)
        strength = grey.new_zeros(len(grey), _DIRECTIONS, *grey.shape[1:])
        strength.scatter_(1, direction[:, None], torch.hypot(across, down)[:, None])
        return cut_patches(self._by_cell(strength), self.cells, self.cells)

    def _colours(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        count, channels = self.levels, images.shape[1]
        levels = ((images.float() / _HALF_RANGE + 1) * (count / 2)).long().clamp(0, count - 1)
        place_values = count ** torch.arange(channels, device=images.device)
        codes = cut_patches((levels * place_values[:, None, None]).sum(1, keepdim=True), *self.patch)
        counts = torch.zeros(*codes.shape[:2], count**channels, device=images.device)
        return counts.scatter_add_(2, codes, torch.ones_like(codes, dtype=counts.dtype))

    def _by_cell(self, x: Float[Tensor, "B F H W"]) -> Float[Tensor, "B F R C"]:
        height, width = self.patch
        return F.avg_pool2d(x, (height // self.cells, width // self.cells))


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
    each channel in `levels` bins from -2 to 2, for data sets too small to learn such features. With `hidden` units, a
    layer over the edges alone recognises shapes whatever their colours.
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
    levels: int = 4  # bins per colour channel, for histograms
    hidden: int = 0  # units of a layer over the edges, for histograms; 0: no such layer

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
        if not 1 <= self.levels <= _MAX_LEVELS:
            raise ConfigError(f"levels={self.levels} is not from 1 to {_MAX_LEVELS}; choose 4 or 8")
        if self.hidden < 0:
            raise ConfigError(f"hidden={self.hidden} is below 0; choose a number of units, or 0 for no layer")

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
            self.stem = HistogramStem(config.channels, width, config.patch, config.cells, config.levels, config.hidden)
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


@register("patch_values")
@dataclass(frozen=True)
class PatchValuesHeadConfig(HeadConfig):
    """The values of the patch of `patch` rows and columns (pixels, or frames and mel bands) that each token covers,
    except the first `skip` tokens.
    """

    patch: tuple[int, int] = (16, 16)  # rows and columns of a patch
    channels: int = 1  # values per row and column
    skip: int = 0  # tokens before the patches

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> PatchValuesHead:
        return PatchValuesHead(self, width)


class PatchValuesHead(nn.Module):
    """A linear layer (Xie et al. 2022, "SimMIM", section 3.3) and the learned patch that replaces hidden ones.

    Patches are hidden in the input instead of after the embedding, so a convolutional stem cannot see across their
    borders. For a linear embedding both are the same: it maps the learned patch to the paper's mask vector.
    """

    def __init__(self, config: PatchValuesHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        size = config.channels * config.patch[0] * config.patch[1]
        self.mask = nn.Parameter(torch.zeros(size))  # the mean of normalised inputs
        self.project = Projection(width, size)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout | None = None) -> Float[Tensor, "B N V"]:
        return self.project(x[:, self.config.skip :])

    def grid(self, inputs: Float[Tensor, "B ..."]) -> Grid:
        """Rows and columns of patches in images [B, C, H, W] or frames [B, T, M]."""
        return inputs.shape[-2] // self.config.patch[0], inputs.shape[-1] // self.config.patch[1]

    def cut(self, inputs: Float[Tensor, "B ..."]) -> Float[Tensor, "B N V"]:
        """The values of the patches, row by row."""
        return cut_patches(inputs if inputs.dim() == 4 else inputs[:, None], *self.config.patch)

    def join(self, patches: Float[Tensor, "B N V"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The inputs that consist of these patches, with the shape of `like`: the inverse of `cut`."""
        height, width = self.config.patch
        rows = patches.unflatten(1, self.grid(like)).unflatten(3, (self.config.channels, height, width))
        return rows.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)

    def hide(self, inputs: Float[Tensor, "B ..."], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B ..."]:
        """The inputs with the learned patch in the place of the hidden ones."""
        patches = self.cut(inputs)
        return self.join(torch.where(hidden[..., None], self.mask.to(patches.dtype), patches), inputs)


def resize_positions(positions: Float[Tensor, "N D"], before: Grid, after: Grid) -> Float[Tensor, "M D"]:
    """Interpolate the position vectors of a grid's patches, row by row, to another grid."""
    image = positions.unflatten(0, before).permute(2, 0, 1)[None]
    return F.interpolate(image, size=after, mode="bicubic", align_corners=False)[0].flatten(1).t()


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
