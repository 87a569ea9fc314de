"""Attention to an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels.attend import View, attend
from headway.nn.kernels.linear import is_stored_in_bf16, linear
from headway.nn.mixers.attention import head_size, shared_heads, shared_positions
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Full


class ProjectedMemory(NamedTuple):
    """An encoded sequence, projected once for one layer."""

    keys: Float[Tensor, "M S G K"]
    values: Float[Tensor, "M S G V"]
    layout: Layout


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Attention of a decoder to an encoder's output (the memory)."""

    heads: int = 8  # query heads
    kv_heads: int | None = None  # key and value heads; none: one per query head
    head_size: int | None = None  # size of a head; none: width / heads
    width: int | None = None  # width of the memory; none: the model's width
    qk_norm: NormConfig | None = None  # norm of queries and keys, per head
    q_bias: bool = True  # whether queries have a bias
    kv_bias: bool | tuple[bool, bool] = True  # whether keys and values have biases (one value or two)
    out_bias: bool = True  # whether the output projection has a bias
    scale: float | None = None  # factor on scores; none: 1 / sqrt(head size)
    soft_cap: float | None = None  # c turns scores into c tanh(scores / c) (T5Gemma)
    dropout: float = 0.0  # dropout rate of attention weights
    placed: bool = False  # whether the stacks' positions are added to queries and keys

    def build(self, width: int, biases: nn.ModuleDict) -> CrossAttention:
        """`biases` are the modules that the blocks of a Stack share."""
        return CrossAttention(self, width, biases)


class CrossAttention(nn.Module):
    """Encoder-decoder attention (Vaswani et al. 2017, section 3.2.3): `remember` projects the memory, once."""

    def __init__(self, config: CrossAttentionConfig, width: int, biases: nn.ModuleDict) -> None:
        super().__init__()
        self.config, self.heads = config, config.heads
        self.groups = shared_heads(config.heads, config.kv_heads)
        self.size = head_size(config.heads, config.head_size, width)
        inner, shared = self.heads * self.size, self.groups * self.size
        self.q = Projection(width, inner, config.q_bias)
        self.kv = Projection(config.width or width, (shared, shared), config.kv_bias)
        self.out = Projection(inner, width, config.out_bias, residual=True)
        self.q_norm, self.k_norm = (config.qk_norm.build(self.size) if config.qk_norm else nn.Identity() for _ in "qk")
        self.dropout = Dropout(config.dropout)
        self._positions = shared_positions(biases) if config.placed else None

    def remember(
        self, encoded: Float[Tensor, "M S E"], layout: Layout, positions: Float[Tensor, "#M S E"] | None = None
    ) -> ProjectedMemory:
        """`positions` come from the encoder's Stack. Raises ConfigError if they are needed but None."""
        keys, values = self.kv(encoded).view(*encoded.shape[:2], 2 * self.groups, self.size).chunk(2, dim=2)
        if self._positions is not None:
            if positions is None:
                raise ConfigError(
                    "cross-attention has placed=true, but the encoder has no positions; set its stack's positions"
                )
            rows = self.groups * self.size
            keys = keys + linear(positions, self.kv.matrix()[:rows]).unflatten(-1, (self.groups, self.size))
        is_bf16 = is_stored_in_bf16(self.kv.weight)
        keys, values = (x.bfloat16() if is_bf16 else x for x in (self.k_norm(keys), values))
        return ProjectedMemory(keys, values, layout)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout, memory: ProjectedMemory) -> Float[Tensor, "B T D"]:
        """B may be W times the number of memories M; row r then reads memory r // W, as with W beams per sentence."""
        shape = x.shape
        query_input = x if self._positions is None else x + self._positions(layout, x)
        q = self.q_norm(self.q(query_input).view(*shape[:2], self.heads, self.size))
        q = q.bfloat16() if is_stored_in_bf16(self.q.weight) else q
        memories, view = memory.keys.shape[0], View(Full(), layout, memory.layout)
        if memory.layout.single:  # a query sees its row's whole memory, otherwise its own document
            if layout.batch != memories:
                positions = layout.positions.reshape
                layout = layout.derived(("folded", memories), lambda: Layout(positions(memories, -1)))
            view = View(Full(), layout, memory.layout, one_document=True)
        elif layout.batch != memories or not bool(layout.host.starts.any()):
            raise UserError(
                f"a memory of {memories} packed rows does not fit {layout.batch} decoding rows; "
                "encode one document per row to generate"
            )
        y = attend(
            q.reshape(memories, -1, self.heads, self.size),
            memory.keys,
            memory.values,
            view,
            scale=self.config.scale,
            soft_cap=self.config.soft_cap,
            dropout=self.dropout.of_weights(),
        )
        return self.out(y.reshape(*shape[:2], self.heads * self.size))
