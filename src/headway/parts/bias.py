"""Biases on attention scores that depend on distance. The Stack owns them; layers share them by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.layout import Layout


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
