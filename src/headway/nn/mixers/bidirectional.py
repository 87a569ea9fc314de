"""Mixers that see only what came before, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers.base import Mixer, MixerConfig, State
from headway.nn.mixers.gated import LSTMConfig
from headway.nn.mixers.recurrence import reverse
from headway.nn.parts.projection import Projection


@register("bidirectional")
@dataclass(frozen=True)
class BidirectionalConfig(MixerConfig):
    """`mixer` twice, once over each document as it stands and once from its end, each with weights of its own. Their
    outputs are joined by their sum, or by a projection of both (`join` "concat"), or stand side by side without `out`.
    """

    mixer: MixerConfig = LSTMConfig(out=False)  # the kind that reads in both directions
    join: Literal["sum", "concat"] = "concat"  # how both outputs are joined
    out: bool = True  # whether they are joined, or stand side by side

    @property
    def causal(self) -> bool:
        return False

    def width_out(self, width: int) -> int:
        each = self.mixer.width_out(width)
        if self.join == "sum":
            return each
        return width if self.out else 2 * each

    def build(self, width: int, biases: nn.ModuleDict) -> Bidirectional:
        return Bidirectional(self, width, biases)


class Bidirectional(Mixer):
    """Schuster and Paliwal 1997, figure 3."""

    causal = False

    def __init__(self, config: BidirectionalConfig, width: int, biases: nn.ModuleDict) -> None:
        super().__init__()
        if not config.mixer.causal:
            kind = config.mixer.kind  # type: ignore[attr-defined]
            raise ConfigError(f"{kind} sees both ways by itself; leave bidirectional out")
        self.forwards, self.backwards = (config.mixer.build(width, biases) for _ in range(2))
        inner = 2 * config.mixer.width_out(width)
        self.added = config.join == "sum"
        self.out = nn.Identity() if self.added or not config.out else Projection(inner, width, writes=True)

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T E"]:
        there = self.forwards.parallel(x, layout)
        back = self.backwards.parallel(reverse(x, layout), layout)
        return self._join(there, back, layout)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> State:
        there, back = (m.initial_state(batch, capacity, like=like) for m in (self.forwards, self.backwards))
        return there, back

    def read(
        self, x: Float[Tensor, "B T D"], layout: Layout
    ) -> tuple[Float[Tensor, "B T E"], tuple[tuple[Tensor, ...], ...]]:
        """The output of `parallel`, and the vectors that describe what each direction has come to at its end, first the
        forward one's and then the backward one's. One document a row.
        """
        there, back = self.initial_state(x.shape[0], x.shape[1], like=x)
        first, there = self.forwards.recurrent(x, layout, there)
        second, back = self.backwards.recurrent(reverse(x, layout), layout, back)
        return self._join(first, second, layout), (self.forwards.final(there), self.backwards.final(back))

    def final_states(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[tuple[Tensor, ...], ...]:
        """See `read`."""
        return self.read(x, layout)[1]

    def _join(self, there: Tensor, back: Tensor, layout: Layout) -> Tensor:
        back = reverse(back, layout)
        return self.out(there + back if self.added else torch.cat([there, back], dim=-1))
