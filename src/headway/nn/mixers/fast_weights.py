"""A slow network that programs the weights of a fast one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.layout import Layout
from headway.nn.kernels import linear_scan, pointwise
from headway.nn.kernels.linear_scan import check_chunk
from headway.nn.mixers.associative import Associative
from headway.nn.mixers.base import MixerConfig
from headway.nn.parts.norm import NormConfig, Strength


@register("fast_weights")
@dataclass(frozen=True)
class FastWeightsConfig(MixerConfig):
    """`strength` lets the slow network say how strongly each head writes, else all is written in full. `squash` tanh
    bounds what the slow network says. `norm` is of each head's output. `head_size` None is width / heads; 1992 had one
    head. `chunk` is the number of tokens that are computed at once.
    """

    heads: int = 8  # heads
    head_size: int | None = None
    strength: bool = True
    squash: Literal["none", "tanh"] = "none"
    norm: NormConfig | None = None
    qkv_bias: bool | tuple[bool, bool, bool] = True  # of the maps to query, key and value, or of each
    out_bias: bool = True  # of the output projection
    chunk: int = 64

    def __post_init__(self) -> None:
        check_chunk(self.chunk)

    @property
    def causal(self) -> bool:
        return True

    def build(self, width: int, biases: nn.ModuleDict) -> FastWeightController:
        return FastWeightController(self, width)


class FastWeightController(Associative):
    """W_t = W_(t-1) + b_t v_t k_t^T and y_t = W_t q_t: at each step a slow network writes keys k ("FROM"), values v
    ("TO") and how strongly, b, and their outer products change the weights W of a fast one (Schmidhuber 1992, "Learning
    to control fast-weight memories"; Schlag et al. 2021, equations 1 to 3).

    It is without softmax and without normalisation. Two liberties: 1992's fast network read the input itself, here the
    slow network writes its query too; and W starts at zero with each document.

    With `strength` and `squash` off this is unnormalised linear attention whose features are the identity,
    `LinearAttentionConfig(features="identity", normalise=False)`: the same weights by the same names give the same
    numbers.
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
