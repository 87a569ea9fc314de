"""Recurrent networks whose transition depends on the input: second-order, factored, and multiplicative LSTMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.nn.kernels import RunSteps, pointwise, unroll
from headway.nn.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.nn.parts.projection import Projection

ACTIVATIONS = {"tanh": torch.tanh, "logistic": torch.sigmoid}


@register("sigma_pi")
@dataclass(frozen=True)
class SigmaPiConfig(RecurrenceConfig):
    """It has cells^2 x width weights, so keep both small. Documents start from learned vectors, initially ones, because
    all products are 0 if h is 0.
    """

    activation: Literal["tanh", "logistic"] = "logistic"  # activation s
    learned_start: bool = True

    def build(self, width: int, biases: nn.ModuleDict) -> SigmaPi:
        return SigmaPi(self, width)


class SigmaPi(Recurrence):
    """h_i = s(sum_jk W_ijk h_j x_k + b_i), with the previous h and the current x.

    Sigma-pi units (Rumelhart, Hinton and McClelland 1986) in a second-order recurrent network (Giles et al. 1990).
    """

    start_value = 1.0

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
    """A second-order network with a factored weight tensor."""

    factors: int | None = None  # number of factors of the tensor; none: as many as cells
    activation: Literal["tanh", "logistic"] = "tanh"  # activation s

    def build(self, width: int, biases: nn.ModuleDict) -> Multiplicative:
        return Multiplicative(self, width)


class Multiplicative(Recurrence):
    """h = s(W_hf diag(W_fx x) W_fh h + W_hx x + b) (Sutskever, Martens and Hinton 2011).

    The first term is a second-order network with W_ijk = sum_f W_hf[i, f] W_fh[f, j] W_fx[f, k].
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
        """One per factor."""
        return self.factors

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            factors, added = inputs.split((self.factors, self.cells), dim=-1)
            return (pointwise(self.activation, self.hidden(factors * self.factor(h)) + added),)

        return unroll(cell, self.input(x), start, steps)


def count_factors(factors: int | None, cells: int) -> int:
    """`factors` if set, otherwise one per cell."""
    count = cells if factors is None else factors
    if count < 1:
        raise ConfigError(f"factors is {count}; set 1 or more, or none for one per cell")
    return count


@register("mlstm")
@dataclass(frozen=True)
class MLSTMConfig(RecurrenceConfig):
    """A multiplicative LSTM."""

    factors: int | None = None  # size of m; none: as many as cells, as in the paper
    forget_bias: float = 1.0  # initial bias of the forget gate

    def build(self, width: int, biases: nn.ModuleDict) -> MLSTM:
        return MLSTM(self, width)


class MLSTM(Recurrence):
    """An LSTM in which m = (W_mx x) (W_mh h) replaces h (Krause et al. 2016)."""

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
        """One per factor; N (4) for f c + i g and o tanh(c)."""
        return self.factors + 4 * self.cells

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            factors, added = inputs.split((self.factors, 4 * self.cells), dim=-1)
            i, f, g, o = (self.hidden(factors * self.factor(h)) + added).chunk(4, dim=-1)
            c = pointwise(torch.sigmoid, f) * c + pointwise(torch.sigmoid, i) * pointwise(torch.tanh, g)
            return pointwise(torch.sigmoid, o) * pointwise(torch.tanh, c), c

        return unroll(cell, self.input(x), start, steps)
