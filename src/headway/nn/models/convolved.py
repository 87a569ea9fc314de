"""A block with a convolution next to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers.base import Memory
from headway.nn.models.block import Block, BlockConfig, BlockOutput, ConvolutionConfig
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS
from headway.nn.parts.projection import Projection


class DocumentConvolution(nn.Module):
    """A convolution within each document; tokens of other documents and padding count as zeros.

    The weight of `product` is [D, D taps], a kernel [D, D, taps] flattened.
    """

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.taps = taps
        self.product = Projection(width * taps, width)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        reach = self.taps // 2
        documents = layout.segments.masked_fill(~layout.mask, -1)
        near = F.pad(documents, (reach, reach), value=-2).unfold(1, self.taps, 1) == documents[..., None]
        around = F.pad(x, (0, 0, reach, reach)).unfold(1, self.taps, 1)
        return self.product((around * near[:, :, None]).flatten(2))


class ConvolvedBlock(Block):
    """norm(block(x) + activation(convolution(x))), as in the first layer of DeBERTa v2."""

    def __init__(self, config: BlockConfig, width: int, biases: nn.ModuleDict, convolution: ConvolutionConfig) -> None:
        super().__init__(config, width, biases)
        if config.mixer.causal or config.placement == "parallel" or self.width != width:
            raise ConfigError(
                "a convolution next to a block reads later tokens; use it with a bidirectional mixer of the model's "
                "width, and a placement other than parallel"
            )
        self.convolution = DocumentConvolution(width, convolution.taps)
        self.activation = ACTIVATIONS[convolution.activation]
        self.dropout = Dropout(config.dropout)
        self.norm = config.norm.build(width)

    def run_with_mixer(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        memory: Memory | None,
        mix: Callable[[Tensor], tuple[Tensor, Any]],
    ) -> BlockOutput:
        y, state, terms = super().run_with_mixer(x, layout, memory, mix)
        return BlockOutput(self.norm(y + self.activation(self.dropout(self.convolution(x, layout)))), state, terms)
