"""Fast weights that correct their contents instead of only adding to them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.layout import Layout
from headway.nn.kernels import delta
from headway.nn.kernels.linear_scan import check_chunk
from headway.nn.mixers.associative import (
    Associative,
    FeatureMap,
    KeyNorm,
    LogDecay,
    Strength,
    check_features,
    feature_size,
    features,
    normalise,
)
from headway.nn.mixers.base import MixerConfig
from headway.nn.parts.norm import NormConfig, RMSNormConfig
from headway.nn.parts.projection import Projection


@register("delta")
@dataclass(frozen=True)
class DeltaConfig(MixerConfig):
    """Fast weights written by the delta rule. The `key_norm` is "sum" (Schlag et al. 2021, section 4.2) or "l2" (Yang
    et al. 2024, "Parallelizing linear transformers with the delta rule", with silu); with "none" the rule is unstable
    where beta |k|^2 exceeds 2.
    """

    heads: int = 8  # number of heads
    head_size: int | None = None  # size of a head; none: width / heads
    features: FeatureMap = "dpfp"  # feature map of queries and keys, as in linear attention
    nu: int = 1  # factor on the width of dpfp features
    key_norm: KeyNorm = "sum"  # normalisation of queries and keys
    norm: NormConfig | None = None  # norm of each head's output
    qkv_bias: bool | tuple[bool, bool, bool] = True  # whether query, key and value have biases (one value or three)
    out_bias: bool = True  # whether the output projection has a bias
    chunk: int = 64  # tokens computed at once

    def __post_init__(self) -> None:
        check_chunk(self.chunk)
        check_features(self.features, self.nu, self.key_norm)

    def build(self, width: int, biases: nn.ModuleDict) -> Delta:
        return Delta(self, width)


class Delta(Associative):
    """W_t = W_(t-1) + beta_t (v_t - W_(t-1) f(k_t)) f(k_t)^T and y_t = W_t f(q_t), where beta_t is the sigmoid of a
    linear map of the input, per head (Schlag et al. 2021, section 4.2).
    """

    def __init__(self, config: DeltaConfig, width: int) -> None:
        super().__init__(width, config.heads, config.head_size, config.qkv_bias, config.out_bias, config.norm)
        self.config = config
        self.strength = Strength(width, config.heads)
        self.memory_shape = (feature_size(self.size, config.features, config.nu), self.size)

    @property
    def scan_flop(self) -> int:
        """H (6 M N) for W f(k), the outer product, its sum with W, and W f(q); H (2 V) for the error times beta."""
        return 6 * self.entries + 2 * self.heads * self.size

    def scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, matrix: Tensor | None
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H M N"]]:
        config = self.config
        q, k = (normalise(features(part, config.features, config.nu), config.key_norm) for part in (q, k))
        return delta(q, k, v, self.strength(x), layout, state=matrix, chunk=config.chunk)


@register("gated_delta")
@dataclass(frozen=True)
class GatedDeltaConfig(MixerConfig):
    """The gated delta rule, without the paper's short convolutions."""

    heads: int = 8  # number of heads
    head_size: int | None = None  # size of a head; none: width / heads
    norm: NormConfig | None = RMSNormConfig()  # norm of each head's output
    out_gate: bool = True  # whether silu of a linear map of the input multiplies the output
    qkv_bias: bool | tuple[bool, bool, bool] = False  # whether query, key and value have biases (one value or three)
    out_bias: bool = False  # whether the output projection has a bias
    chunk: int = 64  # tokens computed at once

    def __post_init__(self) -> None:
        check_chunk(self.chunk)

    def build(self, width: int, biases: nn.ModuleDict) -> GatedDelta:
        return GatedDelta(self, width)


class GatedDelta(Associative):
    """W_t = a_t W_(t-1) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T and y_t = W_t q_t, with silu on queries, keys and
    values, queries and keys of unit length, and a decay a_t and a strength beta_t per head (Yang et al. 2024, "Gated
    delta networks", the gated delta rule and figure 1).
    """

    def __init__(self, config: GatedDeltaConfig, width: int) -> None:
        super().__init__(width, config.heads, config.head_size, config.qkv_bias, config.out_bias, config.norm)
        self.config = config
        self.strength = Strength(width, config.heads)
        self.decay = LogDecay(width, config.heads)
        self.gate = Projection(width, self.heads * self.size, bias=False) if config.out_gate else None

    @property
    def scan_flop(self) -> int:
        """As for Delta, and H M N for the decay."""
        return 7 * self.entries + 2 * self.heads * self.size

    def scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, matrix: Tensor | None
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H M N"]]:
        q, k = (normalise(features(part, "silu"), "l2") for part in (q, k))
        decay, chunk = self.decay(x), self.config.chunk
        return delta(q, k, features(v, "silu"), self.strength(x), layout, log_decay=decay, state=matrix, chunk=chunk)

    def apply_gate(self, y: Float[Tensor, "B T E"], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        return y if self.gate is None else y * features(self.gate(x), "silu")
