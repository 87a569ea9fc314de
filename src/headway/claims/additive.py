"""An LSTM whose products are sums: what is left of it without multiplicative units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headway.kernels import Steps, pointwise, unroll
from headway.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.parts.projection import Projection


@dataclass(frozen=True)
class AdditiveConfig(RecurrenceConfig):
    """It has as many weights as an LSTM of as many cells."""

    def build(self, width: int, biases: nn.ModuleDict) -> Additive:
        return Additive(self, width)


class Additive(Recurrence):
    """c = c + (f + i + g) / 3 and h = (o + tanh(c)) / 2, with i, f, g, o = tanh(W x + U h + b).

    The LSTM's c = f c + i g and h = o tanh(c) with + for each product. Gates that are added are centred, as logistic
    ones would push the cell away from 0 with every token; and sums are divided by their terms, as they would else feed
    back more than they get.
    """

    vectors = 2

    def __init__(self, config: AdditiveConfig, width: int) -> None:
        super().__init__(config, width)
        gates = (self.cells,) * 4
        self.input = Projection(width, gates)
        self.hidden = Projection(self.cells, gates, bias=False)

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            i, f, g, o = pointwise(torch.tanh, inputs + self.hidden(h)).chunk(4, dim=-1)
            c = c + (f + i + g) / 3
            return (o + pointwise(torch.tanh, c)) / 2, c

        return unroll(cell, self.input(x), start, steps)
