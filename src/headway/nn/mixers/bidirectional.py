"""Causal mixers in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers.base import Mixer, MixerConfig, State
from headway.nn.mixers.gated import LSTMConfig
from headway.nn.mixers.recurrence import reverse
from headway.nn.parts.projection import Projection


@register("bidirectional")
@dataclass(frozen=True)
class BidirectionalConfig(MixerConfig):
    """Two mixers with their own weights, one over each document forwards and one backwards. Their outputs are summed,
    or concatenated and projected.
    """

    mixer: MixerConfig = LSTMConfig(out=False)  # mixer to run in both directions
    join: Literal["sum", "concat"] = "concat"  # how to join both outputs
    out: bool = True  # whether a projection follows the concatenation

    @property
    def causal(self) -> bool:
        return False

    def width_out(self, width: int) -> int:
        inner_width = self.mixer.width_out(width)
        if self.join == "sum":
            return inner_width
        return width if self.out else 2 * inner_width

    def build(self, width: int, biases: nn.ModuleDict) -> Bidirectional:
        return Bidirectional(self, width, biases)


class Bidirectional(Mixer):
    """Schuster and Paliwal 1997, figure 3."""

    causal = False

    def __init__(self, config: BidirectionalConfig, width: int, biases: nn.ModuleDict) -> None:
        super().__init__()
        if not config.mixer.causal:
            kind = config.mixer.kind  # type: ignore[attr-defined]
            raise ConfigError(f"{kind} is already bidirectional; use it without bidirectional")
        self.forwards, self.backwards = (config.mixer.build(width, biases) for _ in range(2))
        inner = 2 * config.mixer.width_out(width)
        self.added = config.join == "sum"
        self.out = nn.Identity() if self.added or not config.out else Projection(inner, width, residual=True)

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T E"]:
        forward = self.forwards.parallel(x, layout)
        backward = self.backwards.parallel(reverse(x, layout), layout)
        return self._join(forward, backward, layout)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> State:
        forward, backward = (m.initial_state(batch, capacity, like=like) for m in (self.forwards, self.backwards))
        return forward, backward

    def encode(
        self, x: Float[Tensor, "B T D"], layout: Layout
    ) -> tuple[Float[Tensor, "B T E"], tuple[tuple[Tensor, ...], ...]]:
        """The output of `parallel`, and the final vectors of the forward and of the backward direction. One document
        per row.
        """
        forward_state, backward_state = self.initial_state(x.shape[0], x.shape[1], like=x)
        forward, forward_state = self.forwards.recurrent(x, layout, forward_state)
        backward, backward_state = self.backwards.recurrent(reverse(x, layout), layout, backward_state)
        return self._join(forward, backward, layout), (
            self.forwards.final(forward_state),
            self.backwards.final(backward_state),
        )

    def _join(self, forward: Tensor, backward: Tensor, layout: Layout) -> Tensor:
        backward = reverse(backward, layout)
        return self.out(forward + backward if self.added else torch.cat([forward, backward], dim=-1))
