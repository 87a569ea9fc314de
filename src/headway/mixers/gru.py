"""Gated recurrent units."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from headway.config import register
from headway.kernels import GRUWeights, Steps, gru
from headway.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.parts.projection import Projection


@register("gru")
@dataclass(frozen=True)
class GRUConfig(RecurrenceConfig):
    """`reset_after` lets the reset gate act on the product with h, as nn.GRU does, and not on h itself."""

    reset_after: bool = False

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

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        bias = self.hidden.offset() if self.config.reset_after else None
        weights = GRUWeights(self.input.matrix(), self.input.offset(), self.hidden.matrix(), bias)
        return gru(x, start, steps, weights)
