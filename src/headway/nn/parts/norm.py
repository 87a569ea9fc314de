"""Normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.nn.kernels.pointwise import rms_norm


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
