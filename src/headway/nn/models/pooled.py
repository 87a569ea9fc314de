"""Outputs that say something of a whole document, or of each token: classes, numbers, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import UserError
from headway.layout import Layout
from headway.nn.kernels import View, attend
from headway.nn.mixers.attention import head_size
from headway.nn.models.heads import HeadConfig
from headway.nn.models.patches import Learnt
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName, FeedForwardConfig, MLPConfig
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Full


@register("probe")
@dataclass(frozen=True)
class ProbeHeadConfig(HeadConfig):
    """Rows of one document each, pooled by attention with `heads` heads, and a feed-forward after a norm."""

    heads: int = 8  # heads of the attention that pools
    feed_forward: FeedForwardConfig = MLPConfig()  # after the pooling
    norm: NormConfig = LayerNormConfig()  # before the feed-forward

    def build(self, width: int, symbols: int, table: nn.Parameter | None) -> ProbeHead:
        return ProbeHead(self, width)


class ProbeHead(nn.Module):
    """Multi-head attention pooling (Lee et al. 2019, section 3.2; Zhai et al. 2022, section 3): y + feed(norm(y)),
    where y is what a learned token reads of all others.
    """

    def __init__(self, config: ProbeHeadConfig, width: int) -> None:
        super().__init__()
        self.heads, self.size = config.heads, head_size(config.heads, None, width)
        self.probe = Learnt(1, width)
        self.qkv = Projection(width, (width, width, width))
        self.out = Projection(width, width)
        self.norm = config.norm.build(width)
        self.feed_forward = config.feed_forward.build(width)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B D"]:
        if not layout.single:
            raise UserError("packed rows hold several documents, and a probe reads a row; give a document a row")
        probed = self.qkv(torch.cat([self.probe(x), x], 1)).unflatten(2, (3, self.heads, self.size))
        query = Layout.full(layout.batch, 1, device=x.device)
        view = View(Full(), query, layout, one_document=True)
        y = self.out(attend(probed[:, :1, 0], probed[:, 1:, 1], probed[:, 1:, 2], view).flatten(2))
        more, _ = self.feed_forward(self.norm(y), query)
        return (y + more)[:, 0]


Pool = Literal["first", "mean", "last", "tokens"]


@register("pooled")
@dataclass(frozen=True)
class PooledHeadConfig(HeadConfig):
    """Rows of one document each, pooled: their `first` token, `mean` or `last` token, or all `tokens` by themselves.
    The mean leaves out the first `skip` tokens (class and register tokens of images).

    Then, each where it is asked for: norm(activation(dense(x))) (BERT's pooler: dense, tanh), dropout, a linear map to
    `outputs` classes or numbers, and unit length (`unit`, sentence embeddings). `bias` is that of the map to the
    outputs, `dense_bias` that of dense. Outputs are multiplied by `scale`, and `shift` is added: of numbers, the
    deviation and the mean of those that were trained on.
    """

    outputs: int | None = None  # classes or numbers; none: no map follows
    pool: Pool = "first"  # which tokens of a row are taken
    dense: bool = False  # whether a dense map as wide as the model comes first
    activation: ActivationName | None = None  # after the dense map
    norm: NormConfig | None = None  # after the activation
    dropout: float = 0.0  # before the map to the outputs
    bias: bool = True  # of the map to the outputs
    unit: bool = False  # whether outputs have unit length
    dense_bias: bool = True  # of the dense map
    skip: int = 0  # first tokens that the mean leaves out
    scale: float = 1.0  # what outputs are multiplied by
    shift: float = 0.0  # what is added to outputs

    def build(self, width: int, symbols: int, table: nn.Parameter | None) -> PooledHead:
        return PooledHead(self, width)


class PooledHead(nn.Module):
    def __init__(self, config: PooledHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.dense = Projection(width, width, config.dense_bias) if config.dense else nn.Identity()
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.project = Projection(width, config.outputs, config.bias) if config.outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B *T E"]:
        """[B, E], or [B, T, E] where each token stands for itself."""
        x = self.norm(self.activation(self.dense(pool(x, layout, self.config.pool, self.config.skip))))
        x = self.project(self.dropout(x))
        if self.config.scale != 1.0 or self.config.shift != 0.0:
            exact = x.to(torch.promote_types(x.dtype, torch.float32))  # bf16 knows no 1001
            x = exact * self.config.scale + self.config.shift
        return F.normalize(x, dim=-1) if self.config.unit else x


@register("distilled")
@dataclass(frozen=True)
class DistilledHeadConfig(HeadConfig):
    """Classes by the first token, which learns labels, and by the second, which learns what a teacher says; what both
    say is their mean (Touvron et al. 2021, section 4).
    """

    outputs: int = 1000  # classes
    dropout: float = 0.0  # before both maps

    def build(self, width: int, symbols: int, table: nn.Parameter | None) -> DistilledHead:
        return DistilledHead(self, width)


class DistilledHead(nn.Module):
    def __init__(self, config: DistilledHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.project = Projection(width, config.outputs)
        self.distilled = Projection(width, config.outputs)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B E"]:
        labelled, taught = self.both(x)
        return (labelled + taught) / 2

    def both(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """What either token says: the first for the labels, the second for the teacher's."""
        return self.project(self.dropout(x[:, 0])), self.distilled(self.dropout(x[:, 1]))


def pool(x: Float[Tensor, "B T D"], layout: Layout, how: Pool, skip: int = 0) -> Float[Tensor, "B *T D"]:
    """One vector a row; UserError for rows of several documents. Padding takes no part, nor `skip` tokens in a mean."""
    if how == "tokens":
        return x
    if not layout.single:
        raise UserError("packed rows hold several documents, and pooling gives a vector a row; give a document a row")
    if how == "first":
        return x[:, 0]
    if how == "last" and layout.dense:
        return x[:, -1]
    if how == "last":
        return x[torch.arange(layout.batch, device=x.device), layout.lengths - 1]
    keep = layout.positions >= skip
    return (x * keep[..., None]).sum(1) / keep.sum(1).clamp(min=1)[:, None]
