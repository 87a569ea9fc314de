"""From the frames of a sound to vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import UserError
from headway.layout import Layout
from headway.models.embeds import EmbedConfig
from headway.parts.convolution import Convolution
from headway.parts.dropout import Dropout
from headway.parts.feedforward import ACTIVATIONS
from headway.parts.positions import PositionsConfig, SinusoidTableConfig


@register("frames")
@dataclass(frozen=True)
class FramesEmbedConfig(EmbedConfig):
    """Frames of `bands` numbers each (log-mel spectra), of which the model's context counts every other one."""

    bands: int = 80  # numbers of a frame
    positions: PositionsConfig | None = SinusoidTableConfig()  # vectors of positions
    dropout: float = 0.0  # of the sum

    def reads(self, symbols: int, context: int | None) -> str:
        longest = "any length" if context is None else f"at most {2 * context} frames"
        return f"sounds of {longest}, {self.bands} bands each"

    def build(self, width: int, symbols: int, context: int | None) -> nn.Module:
        return FramesEmbed(self, width, context)


class FramesEmbed(nn.Module):
    """Radford et al. 2022, figure 1: two convolutions over three frames, of which the second takes every other frame,
    and positions.
    """

    def __init__(self, config: FramesEmbedConfig, width: int, context: int | None) -> None:
        super().__init__()
        self.bands, self.context = config.bands, context
        self.first = Convolution(config.bands, width)
        self.second = Convolution(width, width, stride=2)
        self.activation = ACTIVATIONS["gelu"]
        self.positions = config.positions.build(width, context) if config.positions else None
        self.dropout = Dropout(config.dropout)
        self.table = None

    def whole(self, inputs: Tensor) -> Layout:
        """Each row is one sound."""
        return Layout.full(*inputs.shape[:2], device=inputs.device)

    def forward(self, inputs: Float[Tensor, "B T M"], layout: Layout) -> tuple[Float[Tensor, "B S D"], Layout]:
        after = self._check(inputs, layout)
        x = self.activation(self.first(_silent(inputs, layout)))
        x = self.activation(self.second(_silent(x, layout)))
        return self.dropout(x if self.positions is None else x + self.positions(after, x)), after

    def _check(self, inputs: Tensor, layout: Layout) -> Layout:
        """Where the vectors sit. UserError for frames that this model cannot hear."""
        if inputs.shape[2] != self.bands:
            raise UserError(f"the frames have {inputs.shape[2]} bands, this model hears {self.bands}; make as many")
        if not layout.single:
            raise UserError("convolutions would mix the sounds of a row that holds several; give one sound a row")
        after = _halved(layout)
        if self.context is not None and after.length > self.context:
            raise UserError(
                f"a sound of {layout.length} frames exceeds the {2 * self.context} that this model hears; "
                "cut it into shorter ones"
            )
        return after


def _silent(x: Tensor, layout: Layout) -> Tensor:
    """Zeros past the end of each row, as a convolution sees them past the end of a sound that is alone."""
    return x if layout.dense else torch.where(layout.keep[..., None], x, 0.0)


def _halved(layout: Layout) -> Layout:
    length = (layout.length + 1) // 2
    if layout.dense:
        return Layout.full(layout.batch, length, device=layout.positions.device)
    return Layout.padded((layout.lengths + 1) // 2, length)
