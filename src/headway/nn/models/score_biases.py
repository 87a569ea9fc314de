"""Attention score biases, by distance or from the whole input. The Stack owns them; layers share them by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import UserError
from headway.layout import Layout, to_device
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.projection import Projection


def distances(query: Layout, key: Layout) -> Tensor:
    """Key position minus query position, [B, T, S]; [1, T, S] if both are dense."""
    rows = slice(0, 1) if query.dense and key.dense else slice(None)
    return key.positions[rows, None, :] - query.positions[rows, :, None]


@register("alibi")
@dataclass(frozen=True)
class AlibiConfig(BiasConfig):
    def build(self, width: int) -> nn.Module:
        return Alibi(self)


class Alibi(nn.Module):
    """Press et al. 2022: minus a head's slope times the distance, with slopes 2^(-8 i / H), interleaved if H is not a
    power of two.
    """

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__()
        power = 2 ** math.floor(math.log2(config.heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        between = [2 ** (-4 * (2 * i + 1) / power) for i in range(config.heads - power)]
        self.slopes = torch.tensor(slopes + between, dtype=torch.float64, device="cpu")

    def forward(self, x: Tensor, query: Layout, key: Layout) -> Float[Tensor, "#B H T S"]:
        slopes = to_device(self.slopes.to(x.dtype), x.device)
        return -distances(query, key).abs()[:, None] * slopes[:, None, None]


@register("relative")
@dataclass(frozen=True)
class RelativeConfig(BiasConfig):
    """A learned bias per bucket of distance."""

    buckets: int = 32  # distance buckets: exact for short distances, then logarithmic
    reach: int = 128  # distance from which all keys share the last bucket
    both_ways: bool = False  # whether later keys have buckets of their own, for bidirectional attention

    def build(self, width: int) -> nn.Module:
        return Relative(self)


class Relative(nn.Module):
    """Raffel et al. 2020 (T5), section 2.1: a learned scalar per head and distance bucket."""

    def __init__(self, config: RelativeConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.buckets, config.heads))

    def forward(self, x: Tensor, query: Layout, key: Layout) -> Float[Tensor, "#B H T S"]:
        distance = distances(query, key)
        buckets, start = self.config.buckets, torch.zeros_like(distance)
        if self.config.both_ways:
            buckets //= 2
            start = torch.where(distance > 0, buckets, 0)
            back = distance.abs()
        else:
            back = (-distance).clamp(min=0)
        exact = buckets // 2
        ratio = (back.clamp(min=1).float() / exact).log() / math.log(self.config.reach / exact)
        far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return self.table[start + torch.where(back < exact, back, far)].movedim(-1, 1)


@register("smolgen")
@dataclass(frozen=True)
class SmolgenConfig(BiasConfig):
    """A bias generated from the input, for inputs of exactly `length` tokens: tokens are compressed to one hidden
    vector, from which each head generates a vector and, by a layer that all heads share, its bias.
    """

    length: int = 64  # tokens of every input
    compressed: int = 8  # size to which each token is compressed
    hidden: int = 64  # size of the hidden vector of all tokens
    generated: int = 32  # size of the vector from which a head generates its bias

    def build(self, width: int) -> nn.Module:
        return Smolgen(self, width)


class Smolgen(nn.Module):
    """Monroe and Chalmers 2024 (Mastering Chess with a Transformer Model), section 3.2; `table` [H, T T] is a learned
    bias that does not depend on the input.
    """

    def __init__(self, config: SmolgenConfig, width: int) -> None:
        super().__init__()
        self.config = config
        size, norm = config.heads * config.generated, LayerNormConfig()
        self.compress = Projection(width, config.compressed, bias=False)
        self.summary = Projection(config.length * config.compressed, config.hidden)
        self.summary_norm = norm.build(config.hidden)
        self.split = Projection(config.hidden, size)
        self.split_norm = norm.build(size)
        self.spread = Projection(config.generated, config.length**2, bias=False)
        self.table = nn.Parameter(torch.empty(config.heads, config.length**2))

    def forward(self, x: Float[Tensor, "B T D"], query: Layout, key: Layout) -> Float[Tensor, "B H T T"]:
        """Raises UserError for packed inputs or another length."""
        heads, length = self.config.heads, self.config.length
        if x.shape[1] != length or not query.dense or not key.dense:
            raise UserError(f"smolgen takes rows of exactly {length} tokens; pass one input of that length per row")
        summary = self.summary_norm(F.silu(self.summary(self.compress(x).flatten(1))))
        head_vectors = self.split_norm(F.silu(self.split(summary))).unflatten(1, (heads, self.config.generated))
        return (self.spread(head_vectors) + self.table).unflatten(2, (length, length))
