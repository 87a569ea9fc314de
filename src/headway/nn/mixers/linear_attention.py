"""Attention without a softmax and with a state of constant size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import deferred_check, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels import linear_scan
from headway.nn.kernels.linear_scan import check_chunk
from headway.nn.mixers.associative import (
    SIGNED,
    Associative,
    FeatureMap,
    LogDecay,
    check_features,
    feature_size,
    features,
)
from headway.nn.mixers.base import MixerConfig
from headway.nn.parts.norm import NormConfig


@register("linear_attention")
@deferred_check
@dataclass(frozen=True)
class LinearAttentionConfig(MixerConfig):
    """`features` is the feature map of queries and keys: elu + 1 (Katharopoulos et al. 2020) or dpfp with `nu` (Schlag
    et al. 2021); relu, silu and identity are for experiments.
    """

    heads: int = 8  # number of heads
    head_size: int | None = None  # size of a head; none: width / heads
    features: FeatureMap = "elu"
    nu: int = 1  # factor on the width of dpfp features
    normalise: bool = True  # whether to divide by the sum of weights; needs non-negative features
    decay: bool = False  # whether each head decays at its own rate, which depends on the token
    norm: NormConfig | None = None  # norm of each head's output (unnormalised sums grow with the document)
    qkv_bias: bool | tuple[bool, bool, bool] = True  # whether query, key and value have biases (one value or three)
    out_bias: bool = True  # whether the output projection has a bias
    chunk: int = 64  # tokens computed at once

    def __post_init__(self) -> None:
        check_chunk(self.chunk)
        check_features(self.features, self.nu)
        if self.normalise and self.features in SIGNED:
            raise ConfigError(f"features {self.features} may sum to 0; set normalise to false, or choose elu or dpfp")

    def build(self, width: int, biases: nn.ModuleDict) -> LinearAttention:
        return LinearAttention(self, width)


class LinearAttention(Associative):
    """y_t = S_t^T f(q_t) / z_t . f(q_t) with S_t = a_t S_(t-1) + f(k_t) v_t^T and z_t = a_t z_(t-1) + f(k_t)
    (Katharopoulos et al. 2020, equations 16 to 20, where a_t is 1).
    """

    def __init__(self, config: LinearAttentionConfig, width: int) -> None:
        super().__init__(width, config.heads, config.head_size, config.qkv_bias, config.out_bias, config.norm)
        self.config = config
        self.decay = LogDecay(width, config.heads) if config.decay else None
        keys = feature_size(self.size, config.features, config.nu)
        self.memory_shape = (keys, self.size + 1 if config.normalise else self.size)

    @property
    def scan_flop(self) -> int:
        """H (4 M N) for k v^T, its sum with S and S^T q, H M N for the decay; H (V + 1) for the normalisation."""
        dividing = self.heads * (self.size + 1) if self.config.normalise else 0
        return (4 if self.decay is None else 5) * self.entries + dividing

    def scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, matrix: Tensor | None
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H M N"]]:
        config = self.config
        q, k = (features(part, config.features, config.nu) for part in (q, k))
        decay = None if self.decay is None else self.decay(x)
        size = v.shape[-1]
        if config.normalise:  # a value of 1 is appended, whose output is the sum of weights
            v = torch.cat([v, v.new_ones(()).expand(*v.shape[:-1], 1)], -1)
        y, matrix = linear_scan(q, k, v, layout, log_decay=decay, state=matrix, chunk=config.chunk)
        if config.normalise:
            sums, weight = y.split((size, 1), dim=-1)
            y = sums / (weight + 1e-6)
        return y, matrix
