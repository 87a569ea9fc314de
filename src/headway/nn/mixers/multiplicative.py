"""Recurrent networks whose transition depends on the input: second-order ones, factored ones, and the LSTM made so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.nn.kernels import RunSteps, pointwise, unroll
from headway.nn.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.nn.parts.projection import Projection

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

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            products = h[:, :, None] * inputs[:, None, :]
            return (pointwise(self.activation, self.weigh(products.flatten(1))),)

        return unroll(cell, x, start, steps)


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

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
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

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            factors, added = inputs.split((self.factors, 4 * self.cells), dim=-1)
            i, f, g, o = (self.hidden(factors * self.factor(h)) + added).chunk(4, dim=-1)
            c = pointwise(torch.sigmoid, f) * c + pointwise(torch.sigmoid, i) * pointwise(torch.tanh, g)
            return pointwise(torch.sigmoid, o) * pointwise(torch.tanh, c), c

        return unroll(cell, self.input(x), start, steps)
