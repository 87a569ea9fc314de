"""Simple recurrent networks, gated recurrent units and long short-term memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.nn.kernels import ElmanWeights, GRUWeights, LSTMWeights, RunSteps, elman, gru, lstm
from headway.nn.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.nn.parts.projection import Projection


@register("elman")
@dataclass(frozen=True)
class ElmanConfig(RecurrenceConfig):
    """A simple recurrent network."""

    activation: Literal["tanh", "logistic"] = "tanh"  # activation; Elman used logistic
    truncate: bool = False  # whether gradients stop after one step, as in Elman's training

    def build(self, width: int, biases: nn.ModuleDict) -> Elman:
        return Elman(self, width)


class Elman(Recurrence):
    """h = s(W x + U h + b) (Elman 1990, figure 2)."""

    def __init__(self, config: ElmanConfig, width: int) -> None:
        if config.truncate and config.learned_start:
            raise ConfigError("truncate stops gradients before the learned start; set learned_start to false")
        super().__init__(config, width)
        self.config = config
        self.input = Projection(width, self.cells)
        self.hidden = Projection(self.cells, self.cells, bias=False, recurrent=True)

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        weights = ElmanWeights(self.input.matrix(), self.input.offset(), self.hidden.matrix())
        return elman(x, start, steps, weights, self.config.activation == "logistic", self.config.truncate)


@register("gru")
@dataclass(frozen=True)
class GRUConfig(RecurrenceConfig):
    """A gated recurrent unit."""

    reset_after: bool = False  # whether the reset gate acts on the product with h, as in nn.GRU, instead of on h

    def build(self, width: int, biases: nn.ModuleDict) -> GRU:
        return GRU(self, width)


class GRU(Recurrence):
    """h = z h + (1 - z) n, n = tanh(W x + U (r h) + b), with gates r, z = logistic(W x + U h + b).

    Cho et al. 2014 (RNN Encoder-Decoder), equations 5 to 8; with `reset_after` n = tanh(W x + b + r (U h + b')).
    """

    def __init__(self, config: GRUConfig, width: int) -> None:
        super().__init__(config, width)
        self.config = config
        gates = (self.cells,) * 3
        self.input = Projection(width, gates)
        self.hidden = Projection(self.cells, gates, bias=(False, False, config.reset_after), recurrent=True)

    @property
    def scan_flop(self) -> int:
        """N (5) for z h + (1 - z) n and for the reset gate."""
        return 5 * self.cells

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        bias = self.hidden.offset() if self.config.reset_after else None
        weights = GRUWeights(self.input.matrix(), self.input.offset(), self.hidden.matrix(), bias)
        return gru(x, start, steps, weights)


_OPEN = 40.0  # the logistic function of this is 1 in every precision


@register("lstm")
@dataclass(frozen=True)
class LSTMConfig(RecurrenceConfig):
    """`squash` is the activation on inputs and outputs of the cell: "tanh", or "logistic" functions stretched to
    [-2, 2] for inputs and [-1, 1] for outputs; none: as in the papers, "logistic" without a forget gate, otherwise
    "tanh".
    """

    forget_gate: bool = True  # whether there is a forget gate; false: the cell of 1995 and 1997
    peepholes: bool = False  # whether the gates see the cell
    squash: Literal["tanh", "logistic"] | None = None
    forget_bias: float = 1.0  # initial bias of the forget gate

    def build(self, width: int, biases: nn.ModuleDict) -> LSTM:
        return LSTM(self, width)


class LSTM(Recurrence):
    """c = f c + i g, h = o s(c) with gates i, f, o = logistic(W x + U h + b) and g = s'(W x + U h + b).

    Hochreiter and Schmidhuber 1997, section 4, where f is 1; Gers, Schmidhuber and Cummins 2000 ("Learning to forget")
    with f; Gers, Schraudolph and Schmidhuber 2002 with peepholes, by which i and f see the old cell and o the new one.
    """

    vectors = 2

    def __init__(self, config: LSTMConfig, width: int) -> None:
        super().__init__(config, width)
        self.config = config
        self.stretched = (config.squash or ("tanh" if config.forget_gate else "logistic")) == "logistic"
        gates = (self.cells,) * (4 if config.forget_gate else 3)
        self.input = Projection(width, gates)
        self.hidden = Projection(self.cells, gates, bias=False, recurrent=True)
        gates_with_peepholes = 3 if config.forget_gate else 2
        self.peepholes = nn.Parameter(torch.zeros(gates_with_peepholes * self.cells)) if config.peepholes else None
        bias = self.input.bias
        if config.forget_gate and bias is not None:
            nn.init.constant_(bias[self.cells : 2 * self.cells], config.forget_bias)

    @property
    def scan_flop(self) -> int:
        """N (4) for f c + i g and o s(c), one less without f; 2 per peephole."""
        num_peepholes = 0 if self.peepholes is None else self.peepholes.numel()
        return self.cells * (4 if self.config.forget_gate else 3) + 2 * num_peepholes

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        matrix, bias = self._as_modern_cell(self.input.matrix()), self._as_modern_cell(self.input.offset(), _OPEN)
        peepholes = self.peepholes
        if peepholes is not None:
            i, *f, o = peepholes.split(self.cells)
            peepholes = torch.cat([i, *(f or [torch.zeros_like(i)]), o]) * (2 if self.stretched else 1)
        weights = LSTMWeights(matrix, bias, self._as_modern_cell(self.hidden.matrix()), peepholes)
        if not self.stretched:
            return lstm(x, start, steps, weights)
        y, (h, c) = lstm(x, (start[0], start[1] / 2), steps, weights)
        return y, (h, c * 2)

    def _as_modern_cell(self, part: Tensor, forget: float = 0.0) -> Tensor:
        """Gate weights or biases with which a modern LSTM cell computes the same as this variant.

        4 logistic(a) - 2 = 2 tanh(a / 2) and 2 logistic(c) - 1 = tanh(c / 2): half the cell, fed with half the a, is
        a cell with tanh. A cell without a forget gate becomes one whose forget gate is always open.
        """
        if self.config.forget_gate and not self.stretched:
            return part
        i, *f, g, o = part.split(self.cells)
        return torch.cat([i, *(f or [torch.full_like(i, forget)]), g / 2 if self.stretched else g, o])
