"""Recurrent networks whose transition matrix depends on the input, through factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.kernels import Steps, pointwise, unroll
from headway.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.mixers.sigma_pi import ACTIVATIONS
from headway.parts.projection import Projection


@register("multiplicative")
@dataclass(frozen=True)
class MultiplicativeConfig(RecurrenceConfig):
    """`factors` of the tensor that takes h and x to the next h; None is as many as there are cells."""

    factors: int | None = None
    activation: Literal["tanh", "logistic"] = "tanh"  # the squashing function s

    def build(self, width: int, biases: nn.ModuleDict) -> Multiplicative:
        return Multiplicative(self, width)


class Multiplicative(Recurrence):
    """h = s(W_hf diag(W_fx x) W_fh h + W_hx x + b) (Sutskever, Martens and Hinton 2011).

    The first term is that of second-order networks with W_ijk = sum_f W_hf[i, f] W_fh[f, j] W_fx[f, k].
    """

    def __init__(self, config: MultiplicativeConfig, width: int) -> None:
        super().__init__(config, width)
        self.activation = ACTIVATIONS[config.activation]
        self.factors = count_factors(config.factors, self.cells)
        self.input = Projection(width, (self.factors, self.cells), bias=(False, True))
        self.factor = Projection(self.cells, self.factors, bias=False)
        self.hidden = Projection(self.factors, self.cells, bias=False)

    @property
    def scan_flop(self) -> int:
        """One for each factor."""
        return self.factors

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            factors, added = inputs.split((self.factors, self.cells), dim=-1)
            return (pointwise(self.activation, self.hidden(factors * self.factor(h)) + added),)

        return unroll(cell, self.input(x), start, steps)


def count_factors(factors: int | None, cells: int) -> int:
    """As stated, or one for each cell."""
    count = cells if factors is None else factors
    if count < 1:
        raise ConfigError(f"factors {count} is not a number of factors; give 1 or more, or none for one a cell")
    return count
