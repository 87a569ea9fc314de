"""The LSTM whose transition depends on the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headway.config import register
from headway.kernels import Steps, pointwise, unroll
from headway.mixers.multiplicative import count_factors
from headway.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.parts.projection import Projection


@register("mlstm")
@dataclass(frozen=True)
class MLSTMConfig(RecurrenceConfig):
    """`factors` is the size of m; None is that of the cells, as in the paper."""

    factors: int | None = None
    forget_bias: float = 1.0  # where the forget gate's bias starts

    def build(self, width: int, biases: nn.ModuleDict) -> MLSTM:
        return MLSTM(self, width)


class MLSTM(Recurrence):
    """m = (W_mx x) (W_mh h) stands in the place of h in an LSTM (Krause et al. 2016)."""

    vectors = 2

    def __init__(self, config: MLSTMConfig, width: int) -> None:
        super().__init__(config, width)
        self.factors = count_factors(config.factors, self.cells)
        gates = (self.cells,) * 4  # i, f, g, o
        self.input = Projection(width, (self.factors, *gates), bias=(False, True, True, True, True))
        self.factor = Projection(self.cells, self.factors, bias=False)
        self.hidden = Projection(self.factors, gates, bias=False)
        if self.input.bias is not None:
            nn.init.constant_(self.input.bias[self.cells : 2 * self.cells], config.forget_bias)

    @property
    def scan_flop(self) -> int:
        """One for each factor; N (4) for f c + i g and o tanh(c)."""
        return self.factors + 4 * self.cells

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            factors, added = inputs.split((self.factors, 4 * self.cells), dim=-1)
            i, f, g, o = (self.hidden(factors * self.factor(h)) + added).chunk(4, dim=-1)
            c = pointwise(torch.sigmoid, f) * c + pointwise(torch.sigmoid, i) * pointwise(torch.tanh, g)
            return pointwise(torch.sigmoid, o) * pointwise(torch.tanh, c), c

        return unroll(cell, self.input(x), start, steps)
