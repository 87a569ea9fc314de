"""Momentary links in addition to learned ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels import links
from headway.nn.kernels.linear_scan import check_chunk
from headway.nn.mixers.base import Mixer, MixerConfig, zeros
from headway.nn.parts.projection import Projection


@register("dynamic_links")
@dataclass(frozen=True)
class DynamicLinksConfig(MixerConfig):
    """Slow weights plus momentary links that follow Hebb's rule."""

    cells: int | None = None  # number of cells; none: the model's width
    decay: float = 0.9  # factor on links per token
    rate: float = 0.5  # growth rate of links
    bias: bool = True  # whether the slow weights have a bias
    out: bool = True  # whether an output projection follows
    chunk: int = 64  # tokens computed at once

    def __post_init__(self) -> None:
        check_chunk(self.chunk)
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay is {self.decay}; set a number above 0 and at most 1")

    def build(self, width: int, biases: nn.ModuleDict) -> DynamicLinks:
        return DynamicLinks(self, width)


class FastLinks(NamedTuple):
    """The momentary links from D inputs to N cells."""

    matrix: Float[Tensor, "B N D"]


class DynamicLinks(Mixer):
    """y_t = tanh((W + F_t) x_t + b) and F_t = decay F_(t-1) + (rate / D) y_(t-1) x_(t-1)^T, F_1 = 0.

    W is learned slowly, by gradients; F within a document, by Hebb's rule: a link between an input and a cell that were
    active together is strong for a moment and decays. Von der Malsburg 1981 ("The correlation theory of brain
    function") describes this without equations: synapses are modulated fast, by the correlation of the neurons they
    connect. Feldman 1982 ("Dynamic connections in neural networks") has momentary connections between units. Neither
    contains this equation. The sum of slow weights and decaying fast ones is from Hinton and Plaut 1987, where both
    learn from errors; decay and Hebbian products are from Ba et al. 2016, there for links from a state to itself.
    Dividing by the number of inputs D makes `rate` independent of the width.
    """

    def __init__(self, config: DynamicLinksConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width, self.cells = width, config.cells or width
        if not config.out and self.cells != width:
            raise ConfigError(f"cells is {self.cells} and out is false, but the width is {width}; set out to true")
        self.slow = Projection(width, self.cells, config.bias, residual=not config.out)
        self.out = Projection(self.cells, width, config.bias, residual=True) if config.out else nn.Identity()

    @property
    def scan_flop(self) -> int:
        """N (5 D) for F x, the outer product, the decay and their sum; N (2) for the sum with W x and for the rate."""
        return self.cells * (5 * self.width + 2)

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        return self._mix(x, layout, None)[0]

    def recurrent(self, x: Float[Tensor, "B T D"], layout: Layout, state: FastLinks) -> tuple[Tensor, FastLinks]:
        y, matrix = self._mix(x, layout, state.matrix)
        return y, FastLinks(matrix)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> FastLinks:
        return FastLinks(zeros((batch, self.cells, self.width), like))

    def _mix(self, x: Tensor, layout: Layout, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
        decay, rate = self.config.decay, self.config.rate / self.width
        y, matrix = links(self.slow(x), x, layout, decay=decay, rate=rate, state=matrix, chunk=self.config.chunk)
        return self.out(y), matrix
