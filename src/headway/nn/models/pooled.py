"""Heads for a whole document or for each token: classes, numbers, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import UserError
from headway.layout import Layout
from headway.nn.kernels import View, attend
from headway.nn.mixers.attention import head_size
from headway.nn.models.heads import HeadConfig
from headway.nn.models.patches import LearnedVectors
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName, FeedForwardConfig, MLPConfig
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Full


@register("probe")
@dataclass(frozen=True)
class ProbeHeadConfig(HeadConfig):
    """Attention pooling of rows of one document each, then a norm and a feed-forward layer."""

    heads: int = 8  # heads of the pooling attention
    feed_forward: FeedForwardConfig = MLPConfig()  # feed-forward layer after the pooling
    norm: NormConfig = LayerNormConfig()  # norm before the feed-forward layer

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> ProbeHead:
        return ProbeHead(self, width)


class ProbeHead(nn.Module):
    """Multi-head attention pooling (Lee et al. 2019, section 3.2; Zhai et al. 2022, section 3): y + feed(norm(y)),
    where y is the attention of a learned token to all tokens.
    """

    def __init__(self, config: ProbeHeadConfig, width: int) -> None:
        super().__init__()
        self.heads, self.size = config.heads, head_size(config.heads, None, width)
        self.probe = LearnedVectors(1, width)
        self.qkv = Projection(width, (width, width, width))
        self.out = Projection(width, width)
        self.norm = config.norm.build(width)
        self.feed_forward = config.feed_forward.build(width)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B D"]:
        if not layout.single:
            raise UserError("packed rows contain several documents, but a probe pools a row; pass one document per row")
        probed = self.qkv(torch.cat([self.probe(x), x], 1)).unflatten(2, (3, self.heads, self.size))
        query = Layout.full(layout.batch, 1, device=x.device)
        view = View(Full(), query, layout, one_document=True)
        y = self.out(attend(probed[:, :1, 0], probed[:, 1:, 1], probed[:, 1:, 2], view).flatten(2))
        more, _ = self.feed_forward(self.norm(y), query)
        return (y + more)[:, 0]


Pool = Literal["first", "mean", "last", "max", "mean_sqrt", "weighted_mean", "tokens"]


@register("pooled")
@dataclass(frozen=True)
class PooledHeadConfig(HeadConfig):
    """Pools rows of one document each: their `first` or `last` token, the `mean` or the largest values (`max`) of their
    tokens, or all `tokens` separately. `mean_sqrt` divides the sum by the square root of the number of tokens, and
    `weighted_mean` weighs each token by its position from 1 on. Means skip the first `skip` tokens (class and register
    tokens of images).

    The following steps are optional: norm(activation(dense(x))) (BERT's pooler: dense, tanh), dropout, a linear layer
    to `outputs` classes or numbers, and unit length (`unit`, sentence embeddings). Outputs are multiplied by `scale`,
    then `shift` is added: for regression, the standard deviation and mean of the training targets. With `buckets`,
    `Transformer.output` adds logits of n-grams that were fitted after training (`NgramLogits`).
    """

    outputs: int | None = None  # number of classes or predicted numbers; none: no output layer
    pool: Pool = "first"  # tokens of a row to pool
    dense: bool = False  # whether a dense layer comes first
    dense_size: int | None = None  # outputs of the dense layer (none: width of the model)
    activation: ActivationName | None = None  # activation after the dense layer
    norm: NormConfig | None = None  # norm after the activation
    dropout: float = 0.0  # dropout rate before the output layer
    bias: bool = True  # whether the output layer has a bias
    unit: bool = False  # whether outputs have unit length
    dense_bias: bool = True  # whether the dense layer has a bias
    skip: int = 0  # first tokens that the mean skips
    scale: float = 1.0  # factor on the outputs
    shift: float = 0.0  # number added to the outputs
    late: bool = False  # whether tokens are pooled after the dense layer, activation and norm
    buckets: int = 0  # buckets of hashed n-grams whose logits are added (0: none)

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> PooledHead:
        return PooledHead(self, width)


class PooledHead(nn.Module):
    def __init__(self, config: PooledHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        inner = config.dense_size if config.dense and config.dense_size else width
        self.size = config.outputs or inner  # width of the output
        self.dense = Projection(width, inner, config.dense_bias) if config.dense else nn.Identity()
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        self.norm = config.norm.build(inner) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.project = Projection(inner, config.outputs, config.bias) if config.outputs else nn.Identity()
        self.ngrams: nn.Module | None = None
        if config.buckets:
            from headway.nn.models.ngrams import NgramLogits  # few models have it

            self.ngrams = NgramLogits(config.buckets, self.size)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout, skip: int = 0) -> Float[Tensor, "B *T E"]:
        """[B, E], or [B, T, E] without pooling. Means skip at least `skip` tokens, such as those of a prompt."""
        kind, late, skip = self.config.pool, self.config.late, max(skip, self.config.skip)
        x = self.norm(self.activation(self.dense(x if late else pool(x, layout, kind, skip))))
        x = pool(x, layout, kind, skip) if late else x
        x = self.project(self.dropout(x))
        if self.config.scale != 1.0 or self.config.shift != 0.0:
            exact = x.to(torch.promote_types(x.dtype, torch.float32))  # bf16 cannot represent 1001
            x = exact * self.config.scale + self.config.shift
        return F.normalize(x, dim=-1) if self.config.unit else x


@register("distilled")
@dataclass(frozen=True)
class DistilledHeadConfig(HeadConfig):
    """Two classifiers: the first token learns the labels, the second a teacher's predictions; the prediction is their
    mean (Touvron et al. 2021, section 4).
    """

    outputs: int = 1000  # number of classes
    dropout: float = 0.0  # dropout rate before both layers

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> DistilledHead:
        return DistilledHead(self, width)


class DistilledHead(nn.Module):
    def __init__(self, config: DistilledHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.project = Projection(width, config.outputs)
        self.distilled = Projection(width, config.outputs)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B E"]:
        label_logits, teacher_logits = self.both(x)
        return (label_logits + teacher_logits) / 2

    def both(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """Logits of both tokens: the first for the labels, the second for the teacher's predictions."""
        return self.project(self.dropout(x[:, 0])), self.distilled(self.dropout(x[:, 1]))


def pool(x: Float[Tensor, "B T D"], layout: Layout, kind: Pool, skip: int = 0) -> Float[Tensor, "B *T D"]:
    """One vector per row, ignoring padding and, in a mean or maximum, the first `skip` tokens. UserError for packed
    rows.
    """
    if kind == "tokens":
        return x
    if not layout.single:
        raise UserError("packed rows contain several documents, but pooling is per row; pass one document per row")
    if kind == "first":
        return x[:, 0]
    if kind == "last" and layout.dense:
        return x[:, -1]
    if kind == "last":
        return x[torch.arange(layout.batch, device=x.device), layout.lengths - 1]
    mask = (layout.positions >= skip)[..., None]
    if kind == "max":
        return x.masked_fill(~mask, -torch.inf).amax(1)
    weights = mask * (layout.positions[..., None] + 1) if kind == "weighted_mean" else mask
    total = weights.sum(1).clamp(min=1)
    return (x * weights).sum(1) / (total.sqrt() if kind == "mean_sqrt" else total)
