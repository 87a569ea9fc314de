"""Biases on attention scores, by distance or by all that is seen. The Stack owns them; layers share them by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import UserError
from headway.layout import Layout
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.projection import Projection


@family
@dataclass(frozen=True)
class BiasConfig:
    """A term added to attention scores; its module maps (x, query layout, key layout) to [B, H, T, S]."""

    heads: int = 8  # heads of the attention that uses it

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


def distances(query: Layout, key: Layout) -> Tensor:
    """Key position minus query position, [B, T, S]; [1, T, S] where both are dense."""
    rows = slice(0, 1) if query.dense and key.dense else slice(None)
    return key.positions[rows, None, :] - query.positions[rows, :, None]


@register("alibi")
@dataclass(frozen=True)
class AlibiConfig(BiasConfig):
    def build(self, width: int) -> nn.Module:
        return Alibi(self)


class Alibi(nn.Module):
    """Press et al. 2022: minus a head's slope times the distance; slopes 2^(-8 i / H), between powers of two
    interleaved.
    """

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__()
        self.slopes = torch.tensor(_slopes(config.heads), dtype=torch.float64, device="cpu")

    def forward(self, x: Tensor, query: Layout, key: Layout) -> Float[Tensor, "#B H T S"]:
        slopes = self.slopes.to(x.device, x.dtype)
        return -distances(query, key).abs()[:, None] * slopes[:, None, None]


def _slopes(heads: int) -> list[float]:
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return slopes + between


@register("relative")
@dataclass(frozen=True)
class RelativeConfig(BiasConfig):
    """`buckets` of distance, exact when near and logarithmic up to `reach`; `both_ways` where later keys are seen."""

    buckets: int = 32  # buckets of distance, exact when near and logarithmic beyond
    reach: int = 128  # distance from which all share the last bucket
    both_ways: bool = False  # whether later keys are seen

    def build(self, width: int) -> nn.Module:
        return Relative(self)


class Relative(nn.Module):
    """Raffel et al. 2020 (T5), section 2.1: a learned scalar for each head and bucket of distance."""

    def __init__(self, config: RelativeConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.buckets, config.heads))

    def forward(self, x: Tensor, query: Layout, key: Layout) -> Float[Tensor, "#B H T S"]:
        return self.table[self._bucket(distances(query, key))].movedim(-1, 1)

    def _bucket(self, distance: Tensor) -> Tensor:
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
        return start + torch.where(back < exact, back, far)


@register("smolgen")
@dataclass(frozen=True)
class SmolgenConfig(BiasConfig):
    """For inputs of exactly `length` tokens. Each token is compressed to `compressed` numbers, all of them together to
    `hidden`, from which each head gets `generated` numbers and, by a map that all heads share, its bias.
    """

    length: int = 64  # tokens of every input
    compressed: int = 8  # numbers to which each token is compressed
    hidden: int = 64  # numbers to which all tokens together are
    generated: int = 32  # numbers that each head makes its bias from

    def build(self, width: int) -> nn.Module:
        return Smolgen(self, width)


class Smolgen(nn.Module):
    """Monroe and Chalmers 2024 (Mastering Chess with a Transformer Model), section 3.2; `table` [H, T T] adds what does
    not depend on the input, as learned relative positions do.
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
        """UserError for inputs of another length or packed ones."""
        heads, length = self.config.heads, self.config.length
        if x.shape[1] != length or not query.dense or not key.dense:
            raise UserError(f"smolgen reads rows of exactly {length} tokens; give each row one input of that length")
        whole = self.summary_norm(F.silu(self.summary(self.compress(x).flatten(1))))
        each = self.split_norm(F.silu(self.split(whole))).unflatten(1, (heads, self.config.generated))
        return (self.spread(each) + self.table).unflatten(2, (length, length))
