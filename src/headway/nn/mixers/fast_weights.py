"""A slow network that programs the weights of a fast one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.layout import Layout
from headway.nn.kernels import linear_scan, pointwise
from headway.nn.kernels.linear_scan import check_chunk
from headway.nn.mixers.associative import Associative, Strength
from headway.nn.mixers.base import MixerConfig
from headway.nn.parts.norm import NormConfig


@register("fast_weights")
@dataclass(frozen=True)
class FastWeightsConfig(MixerConfig):
    """Fast weights as in 1992, with several heads."""

    heads: int = 8  # number of heads; 1 in 1992
    head_size: int | None = None  # size of a head; none: width / heads
    strength: bool = True  # whether the slow network controls how strongly each head writes
    squash: Literal["none", "tanh"] = "none"  # tanh bounds the slow network's outputs
    norm: NormConfig | None = None  # norm of each head's output
    qkv_bias: bool | tuple[bool, bool, bool] = True  # whether query, key and value have biases (one value or three)
    out_bias: bool = True  # whether the output projection has a bias
    chunk: int = 64  # tokens computed at once

    def __post_init__(self) -> None:
        check_chunk(self.chunk)

    def build(self, width: int, biases: nn.ModuleDict) -> FastWeightController:
        return FastWeightController(self, width)


class FastWeightController(Associative):
    """W_t = W_(t-1) + b_t v_t k_t^T and y_t = W_t q_t: at each step a slow network outputs keys k ("FROM"), values v
    ("TO") and a strength b, and their outer products change the weights W of a fast one (Schmidhuber 1992, "Learning
    to control fast-weight memories"; Schlag et al. 2021, equations 1 to 3).

    It has no softmax and no normalisation. Two differences from 1992: the slow network also outputs the query, while
    the fast network of 1992 read the input itself; and W starts at zero in each document.

    Without `strength` and `squash` this is unnormalised linear attention with identity features,
    `LinearAttentionConfig(features="identity", normalise=False)`: with the same weights the outputs are equal.
    """

    def __init__(self, config: FastWeightsConfig, width: int) -> None:
        super().__init__(width, config.heads, config.head_size, config.qkv_bias, config.out_bias, config.norm)
        self.config = config
        self.strength = Strength(width, config.heads) if config.strength else None

    @property
    def scan_flop(self) -> int:
        """H (4 M N) for v k^T, its sum with W and W q; H V for the strength."""
        return 4 * self.entries + (0 if self.strength is None else self.heads * self.size)

    def scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, matrix: Tensor | None
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H M N"]]:
        if self.config.squash == "tanh":
            q, k, v = (pointwise(torch.tanh, part) for part in (q, k, v))
        if self.strength is not None:
            v = v * self.strength(x)[..., None]
        return linear_scan(q, k, v, layout, state=matrix, chunk=self.config.chunk)
