"""Disentangled attention: scores of contents, and of contents with the relative positions of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import deferred_check, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels.linear import is_deterministic, linear
from headway.nn.mixers.attention import LayeredBias
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.projection import Projection


@register("disentangled")
@deferred_check
@dataclass(frozen=True)
class DisentangledConfig(BiasConfig):
    """Scores of learned vectors of relative positions, which all layers share and project: of queries with the
    positions of keys, and of the positions of queries with keys.
    """

    span: int = 256  # vectors in each direction; distances from there on share the last one
    reach: int | None = 512  # distance of the last of the logarithmic buckets from span / 2 on; none: no buckets
    norm: NormConfig | None = None  # norm of the vectors
    content_to_position: bool = True  # whether queries are compared with the positions of keys
    position_to_content: bool = True  # whether the positions of queries are compared with keys
    shared: bool = True  # whether positions have the projections of contents, or their own

    def __post_init__(self) -> None:
        if self.span < 1 or (self.reach is not None and not 2 <= self.span < 2 * (self.reach - 1)):
            raise ConfigError(
                f"the bias has span {self.span} and reach {self.reach}; set a span of at least 2, and a reach above "
                "half of it plus 1"
            )
        if not self.content_to_position and not self.position_to_content:
            raise ConfigError("the bias compares nothing; set content_to_position or position_to_content")

    def build(self, width: int) -> nn.Module:
        return Disentangled(self, width)


class Disentangled(LayeredBias):
    """A vector per relative position: He et al. 2021 (DeBERTa), equation 3; from half the span on, distances share
    logarithmic buckets (DeBERTa v2).
    """

    def __init__(self, config: DisentangledConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(2 * config.span, width))
        self.norm = config.norm.build(width) if config.norm else nn.Identity()

    def layer(self, width: int, heads: int, groups: int, size: int) -> nn.Module:
        if groups != heads:
            raise ConfigError(
                f"disentangled attention has keys for each query head, not {groups}; set kv_heads to none"
            )
        return PositionTerms(self, width, heads, size)

    def forward(self, query: Layout, key: Layout) -> tuple[Float[Tensor, "R D"], Int[Tensor, "#B T S"]]:
        """The vectors that these layouts use, and their numbers for each query and key."""

        def compute() -> tuple[Layout, int, int, Tensor]:
            rows = slice(0, 1) if query.dense and key.dense else slice(None)
            numbers = self.numbers(query.positions[rows, :, None] - key.positions[rows, None])
            if is_deterministic():  # products of the same shape for every batch
                return key, 0, 2 * self.config.span, numbers
            q, k = query.host.positions[rows], key.host.positions[rows]
            nearest = torch.stack([(q.amin(1) - k.amax(1)).amin(), (q.amax(1) - k.amin(1)).amax()])
            first, last = self.numbers(nearest).tolist()  # a larger distance has no smaller number
            return key, first, last + 1, numbers - first

        # The entry holds the key layout, so that its id cannot be reused by another one.
        _, first, end, numbers = query.derived(("relative", self.config, id(key), is_deterministic()), compute)
        return self.norm(self.table[first:end]), numbers

    def numbers(self, distance: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The row of the table for each query's position minus a key's."""
        return (self._buckets(distance) + self.config.span).clamp(0, 2 * self.config.span - 1)

    def _buckets(self, distance: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        if self.config.reach is None:
            return distance
        exact = self.config.span // 2
        far = distance.abs()
        ratio = (far.clamp(min=exact) / exact).log() / torch.tensor((self.config.reach - 1) / exact).log()
        bucket = (ratio * (exact - 1)).ceil().long() + exact
        return torch.where(far <= exact, distance, bucket * distance.sign())


class PositionTerms(nn.Module):
    """He et al. 2021 (DeBERTa), equation 4: a layer's terms from content to position and from position to content."""

    def __init__(self, relative: Disentangled, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.config = relative.config
        self.shape = (heads, size)
        self._relative = relative.forward  # a bound method is not a submodule
        own = not self.config.shared
        self.k = Projection(width, heads * size) if own and self.config.content_to_position else None
        self.q = Projection(width, heads * size) if own and self.config.position_to_content else None

    def forward(
        self, q: Float[Tensor, "B T H K"], k: Float[Tensor, "B S H K"], query: Layout, key: Layout, qkv: Projection
    ) -> Float[Tensor, "B H T S"]:
        """`qkv` projects the layer's contents."""
        vectors, numbers = self._relative(query, key)
        keys, queries = self.project(vectors, qkv)
        total = torch.zeros((), dtype=q.dtype, device=q.device)
        if keys is not None:
            total = total + self._scores(q, keys, numbers)
        if queries is not None:
            total = total + self._scores(k, queries, numbers.mT).mT
        return total

    def project(self, vectors: Float[Tensor, "R D"], qkv: Projection) -> tuple[Tensor | None, Tensor | None]:
        """The vectors as keys and as queries, each [R, H, K], or None for a term that the config leaves out."""
        config = self.config
        inner = self.shape[0] * self.shape[1]
        shared = qkv(vectors) if config.shared else vectors
        keys = shared[:, inner : 2 * inner] if self.k is None else self.k(vectors)
        queries = shared[:, :inner] if self.q is None else self.q(vectors)
        keys = keys.unflatten(-1, self.shape) if config.content_to_position else None
        queries = queries.unflatten(-1, self.shape) if config.position_to_content else None
        return keys, queries

    def _scores(
        self, x: Float[Tensor, "B T H K"], vectors: Float[Tensor, "R H K"], numbers: Int[Tensor, "#B T S"]
    ) -> Float[Tensor, "B H T S"]:
        if is_deterministic():
            products = torch.stack([linear(x[:, :, h], vectors[:, h]) for h in range(self.shape[0])], 1)
        else:
            products = torch.einsum("bthk,rhk->bhtr", x, vectors)
        return products.gather(-1, numbers[:, None].expand(*products.shape[:3], numbers.shape[-1]))
