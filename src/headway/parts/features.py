"""Feature maps: what stands for the softmax where attention is to be a product of sums."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.errors import ConfigError
from headway.kernels.pointwise import pointwise

FeatureMap = Literal["elu", "dpfp", "relu", "silu", "identity"]
KeyNorm = Literal["none", "sum", "l2"]
SIGNED = ("silu", "identity")  # features that may be negative, so that their sum is no norm
_EPS = 1e-6


def features(x: Float[Tensor, "... K"], kind: FeatureMap, nu: int = 1) -> Float[Tensor, "... M"]:
    """elu: elu(x) + 1 (Katharopoulos et al. 2020, equation 7). dpfp: r_i r_(i + j) of r = relu([x, -x]) for all i and
    j = 1 ... `nu`, which is 2 `nu` times as wide (Schlag et al. 2021). relu, silu, identity: as they say.
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
    """sum: features above 0 add up to 1 (Schlag et al. 2021, section 4.2); l2: unit length (Yang et al. 2024)."""
    if kind == "sum":
        return x / (x.sum(-1, keepdim=True) + _EPS)
    return x if kind == "none" else x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)


def check_features(kind: FeatureMap, nu: int, norm: KeyNorm = "none") -> None:
    if nu < 1:
        raise ConfigError(f"nu is {nu}; give 1 or more")
    if norm == "sum" and kind in SIGNED:
        raise ConfigError(f"features {kind} may add up to 0; choose key_norm l2, or features elu or dpfp")
