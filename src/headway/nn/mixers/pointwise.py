"""No mixing along time: a linear layer over each token separately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.layout import Layout
from headway.nn.mixers.base import Mixer, MixerConfig, zeros
from headway.nn.parts.projection import Projection


@register("pointwise")
@dataclass(frozen=True)
class PointwiseConfig(MixerConfig):
    """A block with it is a multi-layer perceptron without memory: the control for all mixers with one."""

    def build(self, width: int, biases: nn.ModuleDict) -> Pointwise:
        return Pointwise(width)


class EmptyState(NamedTuple):
    """An empty state, [B, 0]."""

    empty: Float[Tensor, "B 0"]


class Pointwise(Mixer):
    """y = W x + b for each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.each = Projection(width, width, residual=True)
        self.out = nn.Identity()  # as in all mixers without an output projection

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        return self.each(x)

    def recurrent(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: EmptyState
    ) -> tuple[Float[Tensor, "B T D"], EmptyState]:
        return self.each(x), state

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> EmptyState:
        return EmptyState(zeros((batch, 0), like))
