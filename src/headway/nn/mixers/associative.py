"""Base of mixers whose state is a matrix per head, written by keys and values and read by queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.layout import Layout
from headway.nn.kernels import linear_scan
from headway.nn.mixers.attention import head_size
from headway.nn.mixers.base import Mixer, zeros
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.projection import Projection


class FastWeights(NamedTuple):
    """The matrices that map keys to values."""

    matrix: Float[Tensor, "B H M N"]


class Associative(Mixer):
    """Projections around a scan of fast weights, which subclasses define in `scan`."""

    def __init__(
        self,
        width: int,
        heads: int,
        size: int | None,
        qkv_bias: bool | tuple[bool, bool, bool],
        out_bias: bool,
        norm: NormConfig | None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.size = head_size(heads, size, width)
        inner = heads * self.size
        self.qkv = Projection(width, (inner, inner, inner), qkv_bias)
        self.out = Projection(inner, width, out_bias, residual=True)
        self.norm = norm.build(self.size) if norm else nn.Identity()
        self.memory_shape = (self.size, self.size)

    def scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, matrix: Tensor | None
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H M N"]]:
        """The queries' outputs, and the fast weights after the last token; `x` is the input, for gates."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """Size of a row's state: H M N."""
        keys, values = self.memory_shape
        return self.heads * keys * values

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        return self._mix(x, layout, None)[0]

    def recurrent(self, x: Float[Tensor, "B T D"], layout: Layout, state: FastWeights) -> tuple[Tensor, FastWeights]:
        y, matrix = self._mix(x, layout, state.matrix)
        return y, FastWeights(matrix)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> FastWeights:
        return FastWeights(zeros((batch, self.heads, *self.memory_shape), like))

    def _mix(self, x: Tensor, layout: Layout, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3 * self.heads, self.size)
        q, k, v = qkv.split(self.heads, dim=2)
        y, after = self.scan(x, q, k, v, layout, matrix)
        return self.out(self.apply_gate(self.norm(y).flatten(2), x)), after

    def apply_gate(self, y: Float[Tensor, "B T E"], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Gate the heads' outputs."""
        return y


def normalised_scan(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, log_decay: Tensor | None, matrix: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Linear attention with weights that sum to 1: a value of 1 is appended, whose output is the sum of weights."""
    ones = v.new_ones(()).expand(*v.shape[:-1], 1)
    y, matrix = linear_scan(q, k, torch.cat([v, ones], -1), layout, log_decay=log_decay, state=matrix, chunk=chunk)
    sums, weight = y.split((v.shape[-1], 1), dim=-1)
    return sums / (weight + 1e-6), matrix
