"""A bias on attention scores that is made from all that is seen: Leela Chess Zero's smolgen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import UserError
from headway.layout import Layout
from headway.parts.bias import BiasConfig
from headway.parts.norm import LayerNormConfig
from headway.parts.projection import Projection


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
