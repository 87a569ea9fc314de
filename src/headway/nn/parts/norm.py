"""Normalisation layers, running standardisation, and feature maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError
from headway.nn.kernels.pointwise import pointwise, rms_norm
from headway.nn.parts.projection import Projection


@family
@dataclass(frozen=True)
class NormConfig:
    """A normalisation of the last axis."""

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


@register("layer")
@dataclass(frozen=True)
class LayerNormConfig(NormConfig):
    eps: float = 1e-5  # number added to the variance
    weight: bool = True  # whether it has a trained scale
    bias: bool = True  # whether it has a trained shift

    def build(self, width: int) -> nn.Module:
        return LayerNorm(self, width)


class LayerNorm(nn.Module):
    """Ba et al. 2016: zero mean and unit variance along the last axis, then scale and shift."""

    def __init__(self, config: LayerNormConfig, width: int) -> None:
        super().__init__()
        self.eps = config.eps
        self.weight = nn.Parameter(torch.ones(width)) if config.weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None
        self.width = width

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


@register("rms")
@dataclass(frozen=True)
class RMSNormConfig(NormConfig):
    """`unit_offset` stores the scale minus one (Gemma)."""

    eps: float = 1e-6  # number added to the mean square
    weight: bool = True  # whether it has a trained scale
    unit_offset: bool = False

    def build(self, width: int) -> nn.Module:
        return RMSNorm(self, width)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019: unit mean square along the last axis, then scale."""

    def __init__(self, config: RMSNormConfig, width: int) -> None:
        super().__init__()
        self.eps = config.eps
        self.offset = 1.0 if config.unit_offset else 0.0
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset)) if config.weight else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        y = rms_norm(x, self.eps)
        if self.weight is None:
            return y
        return y * (self.weight + self.offset if self.offset else self.weight)


class GroupNorm(nn.Module):
    """Wu and He 2018: zero mean and unit variance over all positions of each group of neighbouring channels (the last
    axis), then scale and shift.
    """

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B ... D"]) -> Float[Tensor, "B ... D"]:
        return F.group_norm(x.movedim(-1, 1), self.groups, self.weight, self.bias).movedim(1, -1)


_EPS = 1e-8  # added to a variance


class RunningNorm(nn.Module):
    """Standardise by a running mean and variance, and clip to `reach`.

    Only `update` changes the mean and variance; they are buffers, saved with the weights.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, reach: float = 10.0) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
        scaled = (x - self.mean) * (self.variance + _EPS).rsqrt()
        return scaled.clamp(-self.reach, self.reach)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "N S"]) -> None:
        """Update the statistics with N samples (Chan, Golub and LeVeque 1979, equation 2.1)."""
        old_count, new_count = self.count, float(len(x))
        total = old_count + new_count
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        shift = mean - self.mean
        squares = old_count * self.variance + new_count * variance + shift.square() * (old_count * new_count / total)
        self.mean += shift * (new_count / total)
        self.variance.copy_(squares / total)
        self.count += new_count


FeatureMap = Literal["elu", "dpfp", "relu", "silu", "identity"]
KeyNorm = Literal["none", "sum", "l2"]
SIGNED = ("silu", "identity")  # features that may be negative, so that their sum is not a norm
_EPSILON = 1e-6


def features(x: Float[Tensor, "... K"], kind: FeatureMap, nu: int = 1) -> Float[Tensor, "... M"]:
    """elu: elu(x) + 1 (Katharopoulos et al. 2020, equation 7). dpfp: r_i r_(i + j) of r = relu([x, -x]) for all i and
    j = 1 ... `nu`, which is 2 `nu` times as wide (Schlag et al. 2021). relu, silu, identity: as named.
    """
    if kind == "dpfp":
        r = torch.cat([x, -x], dim=-1).relu()
        return torch.cat([r * r.roll(j, dims=-1) for j in range(1, nu + 1)], dim=-1)
    if kind == "elu":
        return pointwise(F.elu, x) + 1
    if kind == "identity":
        return x
    return F.relu(x) if kind == "relu" else pointwise(F.silu, x)


def feature_size(size: int, kind: FeatureMap, nu: int = 1) -> int:
    """The number of features of `size` inputs."""
    return 2 * nu * size if kind == "dpfp" else size


def normalise(x: Float[Tensor, "... K"], kind: KeyNorm) -> Float[Tensor, "... K"]:
    """sum: positive features that add up to 1 (Schlag et al. 2021, section 4.2); l2: unit length (Yang et al. 2024)."""
    if kind == "sum":
        return x / (x.sum(-1, keepdim=True) + _EPSILON)
    return x if kind == "none" else x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPSILON)


def check_features(kind: FeatureMap, nu: int, norm: KeyNorm = "none") -> None:
    if nu < 1:
        raise ConfigError(f"nu is {nu}; set 1 or more")
    if norm == "sum" and kind in SIGNED:
        raise ConfigError(f"features {kind} may sum to 0; choose key_norm l2, or features elu or dpfp")


_SLOWEST, _FASTEST = 1e-3, 1e-1  # fraction of its memory that a head initially loses per token


class Strength(nn.Module):
    """sigmoid(w x + b) per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.project = Projection(width, heads)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        return pointwise(torch.sigmoid, self.project(x))


class LogDecay(nn.Module):
    """log a = -exp(r) softplus(w x + b) per head (Gu and Dao 2023; Yang et al. 2024, gated delta networks).

    b is initialised so that heads lose from 0.1 % to 10 % of their memory per token, evenly on a log scale.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.project = Projection(width, heads, bias=False)
        self.rate = nn.Parameter(torch.zeros(heads))
        steps = torch.linspace(math.log(_SLOWEST), math.log(_FASTEST), heads).exp()
        self.step = nn.Parameter(steps.expm1().log())  # the inverse of softplus

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        return -self.rate.exp() * pointwise(F.softplus, self.project(x) + self.step)
