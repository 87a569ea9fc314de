"""Base of mixers whose state is a matrix per head, written by keys and values and read by queries."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels import pointwise
from headway.nn.mixers.attention import head_size
from headway.nn.mixers.base import Mixer, zeros
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.projection import Projection


class FastWeights(NamedTuple):
    """The matrices that map keys to values."""

    matrix: Float[Tensor, "B H M N"]


class Associative(Mixer):
    """Projections around a scan of fast weights, which subclasses define in `scan`."""

    def __init__(
        self,
        width: int,
        heads: int,
        size: int | None,
        qkv_bias: bool | tuple[bool, bool, bool],
        out_bias: bool,
        norm: NormConfig | None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.size = head_size(heads, size, width)
        inner = heads * self.size
        self.qkv = Projection(width, (inner, inner, inner), qkv_bias)
        self.out = Projection(inner, width, out_bias, residual=True)
        self.norm = norm.build(self.size) if norm else nn.Identity()
        self.memory_shape = (self.size, self.size)

    def scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, matrix: Tensor | None
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H M N"]]:
        """The queries' outputs, and the fast weights after the last token; `x` is the input, for gates."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """Size of a row's state: H M N."""
        keys, values = self.memory_shape
        return self.heads * keys * values

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        return self._mix(x, layout, None)[0]

    def recurrent(self, x: Float[Tensor, "B T D"], layout: Layout, state: FastWeights) -> tuple[Tensor, FastWeights]:
        y, matrix = self._mix(x, layout, state.matrix)
        return y, FastWeights(matrix)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> FastWeights:
        return FastWeights(zeros((batch, self.heads, *self.memory_shape), like))

    def _mix(self, x: Tensor, layout: Layout, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3 * self.heads, self.size)
        q, k, v = qkv.split(self.heads, dim=2)
        y, after = self.scan(x, q, k, v, layout, matrix)
        return self.out(self.apply_gate(self.norm(y).flatten(2), x)), after

    def apply_gate(self, y: Float[Tensor, "B T E"], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Gate the heads' outputs."""
        return y


FeatureMap = Literal["elu", "dpfp", "relu", "silu", "identity"]
KeyNorm = Literal["none", "sum", "l2"]
SIGNED = ("silu", "identity")  # features that may be negative, so that their sum is not a norm
_MIN_NORM = 1e-6


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
        return x / (x.sum(-1, keepdim=True) + _MIN_NORM)
    return x if kind == "none" else x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _MIN_NORM)


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
