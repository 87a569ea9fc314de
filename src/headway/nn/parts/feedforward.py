"""Feed-forward layers: plain, gated, and mixtures of experts with top-k routing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels.pointwise import gelu_tanh, is_gelu_compiled, pointwise, relu_squared, shifted_gelu_tanh
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.projection import Projection

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
"""Activations by name; in deterministic mode a row's result does not depend on other rows."""


@family
@dataclass(frozen=True)
class FeedForwardConfig:
    """A layer applied to each token separately. Its module returns the output and named auxiliary losses."""

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


def hidden_width(hidden: int | None, ratio: float, width: int) -> int:
    """The inner width F: `hidden` if set, otherwise `ratio` times the model's width."""
    size = hidden if hidden is not None else round(ratio * width)
    if size < 1:
        raise ConfigError(f"the feed-forward width is {size}; set hidden or ratio above 0")
    return size


@register("mlp")
@dataclass(frozen=True)
class MLPConfig(FeedForwardConfig):
    """Two linear layers with an activation between them."""

    hidden: int | None = None  # inner width; none: ratio times the model's width
    ratio: float = 4.0  # inner width divided by the model's width
    activation: ActivationName = "gelu"  # activation between the two layers
    bias: bool = True  # whether both layers have biases
    dropout: float = 0.0  # dropout rate of the inner vector

    def build(self, width: int) -> nn.Module:
        return MLP(self, width)


class MLP(nn.Module):
    """down(activation(up(x))) (Vaswani et al. 2017, equation 2, with ReLU)."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        hidden = hidden_width(config.hidden, config.ratio, width)
        self.up = Projection(width, hidden, config.bias, inner=True)
        self.down = Projection(hidden, width, config.bias, residual=True)
        self.activation = ACTIVATIONS[config.activation]
        self.fuses_bias = config.activation == "gelu_tanh"  # can be fused with the bias before it
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Terms]:
        bias = self.up.bias
        fuses = self.fuses_bias and not self.up.is_hooked and bias is not None and bias.requires_grad
        if bias is not None and fuses and is_gelu_compiled(x, len(bias)):
            inner = shifted_gelu_tanh(self.up.product(x), bias)  # adds the bias in the same pass
        else:
            inner = self.activation(self.up(x))
        return self.down(self.dropout(inner)), {}


@register("gated")
@dataclass(frozen=True)
class GatedConfig(FeedForwardConfig):
    """A gated linear unit: SwiGLU with silu, GEGLU with gelu."""

    hidden: int | None = None  # inner width; none: ratio times the model's width
    ratio: float = 8 / 3  # inner width divided by the model's width
    activation: ActivationName = "silu"  # activation of the gate
    bias: bool = False  # whether gate and up have biases, and down by default
    dropout: float = 0.0  # dropout rate of the inner vector
    limit: float | None = None  # clamps the gate to c and the other half to -c to c, and adds 1 to it (gpt-oss)
    down_bias: bool | None = None  # whether down has a bias; none: as gate and up

    def build(self, width: int) -> nn.Module:
        return Gated(self, width)


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020: SwiGLU with SiLU, GEGLU with GELU); gate and up are one
    product.
    """

    def __init__(self, config: GatedConfig, width: int) -> None:
        super().__init__()
        hidden = hidden_width(config.hidden, config.ratio, width)
        self.gate_up = Projection(width, (hidden, hidden), config.bias, inner=True)
        down_bias = config.bias if config.down_bias is None else config.down_bias
        self.down = Projection(hidden, width, down_bias, residual=True)
        self.activation = ACTIVATIONS[config.activation]
        self.limit = config.limit
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Terms]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit) + 1
        return self.down(self.dropout(self.activation(gate) * up)), {}
