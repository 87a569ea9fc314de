"""Simple recurrent networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.kernels import ElmanWeights, Steps, elman
from headway.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.parts.projection import Projection


@register("elman")
@dataclass(frozen=True)
class ElmanConfig(RecurrenceConfig):
    """`activation` is Elman's logistic function or the hyperbolic tangent; `truncate` learns as he did, from one step
    back: the context units are inputs like any other, and no gradient goes through them.
    """

    activation: Literal["tanh", "logistic"] = "tanh"
    truncate: bool = False  # whether gradients go one step back only, as Elman's did

    def build(self, width: int, biases: nn.ModuleDict) -> Elman:
        return Elman(self, width)


class Elman(Recurrence):
    """h = s(W x + U h + b) (Elman 1990, figure 2)."""

    def __init__(self, config: ElmanConfig, width: int) -> None:
        if config.truncate and config.learned_start:
            raise ConfigError("no gradient reaches the start of a truncated network; set learned_start to false")
        super().__init__(config, width)
        self.config = config
        self.input = Projection(width, self.cells)
        self.hidden = Projection(self.cells, self.cells, bias=False, recurrent=True)

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        weights = ElmanWeights(self.input.matrix(), self.input.offset(), self.hidden.matrix())
        return elman(x, start, steps, weights, self.config.activation == "logistic", self.config.truncate)
