"""Feed-forward layers: plain and gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError
from headway.kernels.activations import gelu_tanh, relu_squared
from headway.kernels.pointwise import pointwise
from headway.layout import Layout
from headway.parts.dropout import Dropout
from headway.parts.projection import Projection

ActivationName = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "relu_squared", "silu", "tanh"]
Terms = dict[str, Tensor]  # named auxiliary losses, means over tokens


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu_squared": relu_squared,
    "silu": F.silu,
    "tanh": torch.tanh,
}
ACTIVATIONS = {name: partial(pointwise, function) for name, function in _PLAIN.items()}
"""By name, each so that rows stay apart in deterministic mode."""


@family
@dataclass(frozen=True)
class FeedForwardConfig:
    """A map of each token by itself. Its module returns the output and named auxiliary losses."""

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


def hidden_width(hidden: int | None, ratio: float, width: int) -> int:
    """The inner width F: as stated, or a multiple of the model's width."""
    size = hidden if hidden is not None else round(ratio * width)
    if size < 1:
        raise ConfigError(f"feed-forward width {size} is empty; give hidden or ratio above 0")
    return size


@register("mlp")
@dataclass(frozen=True)
class MLPConfig(FeedForwardConfig):
    """`hidden` is the inner width F; None takes `ratio` times the model's width."""

    hidden: int | None = None  # inner width; none: ratio times the model's width
    ratio: float = 4.0  # inner width over the model's
    activation: ActivationName = "gelu"  # between the two maps
    bias: bool = True  # of both maps
    dropout: float = 0.0  # of the inner vector

    def build(self, width: int) -> nn.Module:
        return MLP(self, width)


class MLP(nn.Module):
    """down(activation(up(x))) (Vaswani et al. 2017, equation 2, with ReLU)."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        hidden = hidden_width(config.hidden, config.ratio, width)
        self.up = Projection(width, hidden, config.bias)
        self.down = Projection(hidden, width, config.bias, writes=True)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Terms]:
        return self.down(self.dropout(self.activation(self.up(x)))), {}


@register("gated")
@dataclass(frozen=True)
class GatedConfig(FeedForwardConfig):
    """`hidden` is the inner width F; None takes `ratio` times the model's width."""

    hidden: int | None = None  # inner width; none: ratio times the model's width
    ratio: float = 8 / 3  # inner width over the model's
    activation: ActivationName = "silu"  # of the gate
    bias: bool = False  # of all three maps
    dropout: float = 0.0  # of the inner vector

    def build(self, width: int) -> nn.Module:
        return Gated(self, width)


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020: SwiGLU with SiLU, GEGLU with GELU); gate and up are one
    product.
    """

    def __init__(self, config: GatedConfig, width: int) -> None:
        super().__init__()
        hidden = hidden_width(config.hidden, config.ratio, width)
        self.gate_up = Projection(width, (hidden, hidden), config.bias)
        self.down = Projection(hidden, width, config.bias, writes=True)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Terms]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.dropout(self.activation(gate) * up)), {}
