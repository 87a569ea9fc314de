"""One vector of many tokens by a learned query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import UserError
from headway.kernels import View, attend
from headway.layout import Layout
from headway.mixers.attention import head_size
from headway.models.heads import HeadConfig
from headway.models.patches import Learnt
from headway.parts.feedforward import FeedForwardConfig, MLPConfig
from headway.parts.norm import LayerNormConfig, NormConfig
from headway.parts.projection import Projection
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
