"""Second-order recurrent networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headway.config import register
from headway.kernels import Steps, pointwise, unroll
from headway.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.parts.projection import Projection

ACTIVATIONS = {"tanh": torch.tanh, "logistic": torch.sigmoid}


@register("sigma_pi")
@dataclass(frozen=True)
class SigmaPiConfig(RecurrenceConfig):
    """cells^2 x width weights, so keep both small. Documents start from ones that are trained: where h is 0, so is
    every product.
    """

    activation: Literal["tanh", "logistic"] = "logistic"  # the squashing function s
    learned_start: bool = True

    def build(self, width: int, biases: nn.ModuleDict) -> SigmaPi:
        return SigmaPi(self, width)


class SigmaPi(Recurrence):
    """h_i = s(sum_jk W_ijk h_j x_k + b_i), of h before and x now.

    Sigma-pi units (Rumelhart, Hinton and McClelland 1986) in a second-order recurrent network (Giles et al. 1990).
    """

    beginning = 1.0

    def __init__(self, config: SigmaPiConfig, width: int) -> None:
        super().__init__(config, width)
        self.activation = ACTIVATIONS[config.activation]
        self.weigh = Projection(self.cells * width, self.cells)

    @property
    def scan_flop(self) -> int:
        """N D for the products h_j x_k."""
        return self.weigh.weight.shape[1]

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            products = h[:, :, None] * inputs[:, None, :]
            return (pointwise(self.activation, self.weigh(products.flatten(1))),)

        return unroll(cell, x, start, steps)
