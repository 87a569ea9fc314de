"""Attention to an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels.attend import View, attend
from headway.nn.kernels.linear import linear
from headway.nn.mixers.attention import head_size, shared_heads, shared_positions
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Full


class Remembered(NamedTuple):
    """An encoded sequence, projected once for one layer."""

    keys: Float[Tensor, "M S G K"]
    values: Float[Tensor, "M S G V"]
    layout: Layout


@dataclass(frozen=True)
class CrossAttentionConfig:
    """`width` is that of the memory; None is the model's own; `kv_bias` may be said for each of key and value. With
    `placed` the Stack's positions are added to what queries are made of, and those of the encoder's to what keys are.
    The other fields are those of AttentionConfig.
    """

    heads: int = 8  # query heads
    kv_heads: int | None = None  # key and value heads; none: one for each query head
    head_size: int | None = None  # none: width / heads
    width: int | None = None
    qk_norm: NormConfig | None = None  # of queries and keys, a head
    q_bias: bool = True  # of the map to queries
    kv_bias: bool | tuple[bool, bool] = True
    out_bias: bool = True  # of the output projection
    scale: float | None = None  # of scores; none: 1 / sqrt(head size)
    dropout: float = 0.0  # of attention weights
    placed: bool = False  # whether queries and keys get the positions of the stack

    def build(self, width: int, biases: nn.ModuleDict) -> CrossAttention:
        """`biases` are what the blocks of a Stack share."""
        return CrossAttention(self, width, biases)


class CrossAttention(nn.Module):
    """Encoder-decoder attention (Vaswani et al. 2017, section 3.2.3): `remember` projects the memory, once."""

    def __init__(self, config: CrossAttentionConfig, width: int, biases: nn.ModuleDict) -> None:
        super().__init__()
        self.config = config
        self.heads = config.heads
        self.groups = shared_heads(config.heads, config.kv_heads)
        self.size = head_size(config.heads, config.head_size, width)
        inner, shared = self.heads * self.size, self.groups * self.size
        self.q = Projection(width, inner, config.q_bias)
        self.kv = Projection(config.width or width, (shared, shared), config.kv_bias)
        self.out = Projection(inner, width, config.out_bias, writes=True)
        self.q_norm = config.qk_norm.build(self.size) if config.qk_norm else nn.Identity()
        self.k_norm = config.qk_norm.build(self.size) if config.qk_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self._positions = shared_positions(biases) if config.placed else None

    def remember(
        self, encoded: Float[Tensor, "M S E"], layout: Layout, positions: Float[Tensor, "#M S E"] | None = None
    ) -> Remembered:
        """`positions` are those of the encoder's Stack, None where it has none. ConfigError where they are missing."""
        keys, values = self.kv(encoded).view(*encoded.shape[:2], 2 * self.groups, self.size).chunk(2, dim=2)
        if self._positions is not None:
            keys = keys + self._placed(positions)
        return Remembered(self.k_norm(keys), values, layout)

    def _placed(self, positions: Float[Tensor, "#M S E"] | None) -> Float[Tensor, "#M S G K"]:
        if positions is None:
            raise ConfigError("a cross-attention is placed, and the encoder has no positions; set those of its stack")
        rows = self.groups * self.size
        return linear(positions, self.kv.matrix()[:rows]).unflatten(-1, (self.groups, self.size))

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout, memory: Remembered) -> Float[Tensor, "B T D"]:
        """B may be a multiple W M of the memories: row r then reads memory r // W, as the beams of a sentence do."""
        shape = x.shape
        asked = x if self._positions is None else x + self._positions(layout, x)
        q = self.q_norm(self.q(asked).view(*shape[:2], self.heads, self.size))
        memories = memory.keys.shape[0]
        view = self._view(layout, memory.layout)
        y = attend(
            q.reshape(memories, -1, self.heads, self.size),
            memory.keys,
            memory.values,
            view,
            scale=self.config.scale,
            dropout=self.dropout if self.training and self.config.dropout else None,
        )
        return self.out(y.reshape(*shape[:2], self.heads * self.size))

    def _view(self, query: Layout, memory: Layout) -> View:
        """Packed memories are read document by document; single ones by every query of their rows."""
        if memory.single:
            folded = query.derived(("folded", memory.batch), lambda: _fold(query, memory.batch))
            return View(Full(), folded, memory, one_document=True)
        if query.batch != memory.batch or not bool(query.starts.any()):
            raise UserError(
                f"a memory of {memory.batch} packed rows cannot be read by {query.batch} decoding rows; "
                "encode one document a row to generate"
            )
        return View(Full(), query, memory)


def _fold(query: Layout, memories: int) -> Layout:
    if query.batch == memories:
        return query
    return Layout(query.positions.reshape(memories, -1))
