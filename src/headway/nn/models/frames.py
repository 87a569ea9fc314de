"""Audio embeddings: spectrogram frames or patches to vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.patches import Grid, GridPositions, LearnedVectors
from headway.nn.parts.convolution import Convolution
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS
from headway.nn.parts.positions import PositionsConfig
from headway.nn.parts.projection import Projection


@register("sinusoid_table")
@dataclass(frozen=True)
class SinusoidTableConfig(PositionsConfig):
    """A fixed table of sinusoids, stored with the weights as in Whisper's encoder: all sines before all cosines, with
    rates from 1 to 1 / theta inclusive.
    """

    theta: float = 10000.0  # the slowest rate is 1 / theta

    def build(self, width: int, context: int | None) -> nn.Module:
        if context is None:
            raise ConfigError(
                "a table of positions needs a context; set model.context to the longest input, such as 1500"
            )
        if width % 2 or width < 4:
            raise ConfigError(f"width is {width}; set an even number of at least 4 for a table of sinusoids")
        return SinusoidTable(self, width, context)


class SinusoidTable(nn.Module):
    """Radford et al. 2022, section 2.2."""

    table: Tensor

    def __init__(self, config: SinusoidTableConfig, width: int, context: int) -> None:
        super().__init__()
        half = width // 2
        # Computed in fp32 like the published tables: angles in fp64 would differ from them by 1e-4.
        rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(config.theta) / (half - 1)))
        angles = torch.arange(context, dtype=torch.float32)[:, None] * rates
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        positions = layout.positions[:1] if layout.dense else layout.positions
        return nn.functional.embedding(positions.clamp(min=0), self.table)


@register("frames")
@dataclass(frozen=True)
class FramesEmbedConfig(EmbedConfig):
    """Log-mel frames of `bands` values. The second convolution has stride 2, so a position covers two frames."""

    bands: int = 80  # mel bands per frame
    positions: PositionsConfig | None = SinusoidTableConfig()  # position vectors
    dropout: float = 0.0  # dropout rate of the sum

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        limit = "any length" if context is None else f"at most {2 * context} frames"
        return f"audio of {limit}, {self.bands} mel bands"

    def build(self, width: int, vocab_size: int, context: int | None) -> nn.Module:
        return FramesEmbed(self, width, context)


class FramesEmbed(Embed):
    """Radford et al. 2022, figure 1: two convolutions over three frames, the second with stride 2, and positions."""

    def __init__(self, config: FramesEmbedConfig, width: int, context: int | None) -> None:
        super().__init__()
        self.bands, self.context = config.bands, context
        self.first = Convolution(config.bands, width)
        self.second = Convolution(width, width, stride=2)
        self.activation = ACTIVATIONS["gelu"]
        self.positions = config.positions.build(width, context) if config.positions else None
        self.dropout = Dropout(config.dropout)

    def forward(self, inputs: Float[Tensor, "B T M"], layout: Layout) -> tuple[Float[Tensor, "B S D"], Layout]:
        """Raises UserError for frames that this model does not take."""
        if inputs.shape[2] != self.bands:
            raise UserError(f"the frames have {inputs.shape[2]} mel bands; compute {self.bands} bands for this model")
        if not layout.single:
            raise UserError("convolutions would mix several clips in one row; pass one audio clip per row")
        length = (layout.length + 1) // 2
        if layout.dense:
            after = Layout.full(layout.batch, length, device=layout.positions.device)
        else:
            after = Layout.padded((layout.lengths + 1) // 2, length)
        if self.context is not None and after.length > self.context:
            raise UserError(
                f"audio of {layout.length} frames exceeds this model's limit of {2 * self.context}; "
                "cut it into shorter clips"
            )
        x = self.activation(self.first(_zero_padding(inputs, layout)))
        x = self.activation(self.second(_zero_padding(x, layout)))
        return self.dropout(x if self.positions is None else x + self.positions(after, x)), after


def _zero_padding(x: Tensor, layout: Layout) -> Tensor:
    """Zero the padding, as a convolution pads a single clip."""
    return x if layout.dense else torch.where(layout.mask[..., None], x, 0.0)


@register("spectrogram")
@dataclass(frozen=True)
class SpectrogramEmbedConfig(EmbedConfig):
    """Log-mel frames [B, T, `bands`], cut into patches of `patch` (frames, bands), one every `stride`.

    Patches over all bands are time steps (KWT: (1, 40)); patches of 16 x 16 every 10 x 10 overlap (AST). `tokens`
    learned vectors precede them, as for images. Positions are learned for clips of `frames` and interpolated for other
    lengths. Leftovers at the edges are ignored, as in AST's convolution; `padded_frames` is a length without leftovers.
    """

    frames: int = 100  # length in frames for which positions are learned
    bands: int = 80  # mel bands per frame
    patch: tuple[int, int] = (1, 80)  # frames and bands of a patch
    stride: tuple[int, int] = (1, 80)  # frames and bands between patches
    tokens: int = 1  # learned vectors before the patches
    dropout: float = 0.0  # dropout rate of the sum

    def __post_init__(self) -> None:
        if min(self.frames, self.bands, *self.patch, *self.stride) < 1 or self.tokens < 0:
            raise ConfigError(
                f"patch={self.patch}, stride={self.stride}, frames={self.frames}, bands={self.bands} and "
                f"tokens={self.tokens}: sizes must be above 0, and tokens at least 0"
            )
        if self.frames < self.patch[0] or self.bands < self.patch[1]:
            raise ConfigError(
                f"{self.frames} frames of {self.bands} bands are smaller than a patch of {self.patch}; set larger sizes"
            )

    @property
    def length(self) -> int:
        """Tokens of a clip of `frames`."""
        rows, columns = self.grid(self.frames)
        return self.tokens + rows * columns

    def padded_frames(self, frames: int) -> int:
        """The smallest length of at least `frames` that divides into patches."""
        return self.patch[0] + max(0, -(-(frames - self.patch[0]) // self.stride[0])) * self.stride[0]

    def grid(self, frames: int) -> Grid:
        """Patches along time and along bands. Raises UserError for a clip shorter than a patch."""
        if frames < self.patch[0]:
            raise UserError(f"audio of {frames} frames is shorter than a patch of {self.patch[0]} frames; pad it")
        sizes = zip((frames, self.bands), self.patch, self.stride)
        rows, columns = ((size - part) // step + 1 for size, part, step in sizes)
        return rows, columns

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"audio of {self.frames} frames ({self.length} tokens) or other lengths"

    def summary(self) -> str:
        (long, high), (along, up) = self.patch, self.stride
        return f"patches of {long} frames x {high} bands, one every {along} x {up}, {self.tokens} learned tokens"

    def build(self, width: int, vocab_size: int, context: int | None) -> SpectrogramEmbed:
        return SpectrogramEmbed(self, width)


class SpectrogramEmbed(Embed):
    """Patches to vectors by a linear layer, learned tokens before them, positions; `project.weight` is [D, P Q]."""

    def __init__(self, config: SpectrogramEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.project = Projection(config.patch[0] * config.patch[1], width)
        self.tokens = LearnedVectors(config.tokens, width) if config.tokens else None
        self.positions = GridPositions(config.tokens, config.grid(config.frames), width)
        self.dropout = Dropout(config.dropout)

    def default_layout(self, frames: Float[Tensor, "B T M"]) -> Layout:
        """One document per clip."""
        rows, columns = self._grid(frames)
        return Layout.full(frames.shape[0], self.config.tokens + rows * columns, device=frames.device)

    def forward(self, frames: Float[Tensor, "B T M"], layout: Layout) -> tuple[Float[Tensor, "B S D"], Layout]:
        token_positions, patch_positions = self.positions(self._grid(frames))
        (long, high), (along, up) = self.config.patch, self.config.stride
        patches = frames.unfold(1, long, along).unfold(2, high, up)  # [B, rows, columns, P, Q]
        x = self.project(patches.flatten(3).flatten(1, 2)) + patch_positions
        if self.tokens is not None:
            x = torch.cat([self.tokens(x) + token_positions, x], 1)
        return self.dropout(x), layout

    def _grid(self, frames: Float[Tensor, "B T M"]) -> Grid:
        if frames.shape[2] != self.config.bands:
            raise UserError(
                f"the frames have {frames.shape[2]} mel bands; compute {self.config.bands} bands for this model"
            )
        return self.config.grid(frames.shape[1])
