"""Self-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, nearest
from headway.layout import Layout, cached_on_host
from headway.nn.kernels.attend import View, attend, rotate
from headway.nn.kernels.linear import is_stored_in_bf16, linear
from headway.nn.mixers.base import Mixer, MixerConfig, zeros
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import Rotary, RotaryConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Causal, Pattern

_LARGEST_HEAD = 1 << 16  # a head's rotary angles are computed when a model is built, before weights are allocated
POSITIONS = "positions"  # the key of a Stack's positions among the modules that its blocks share
_SLACK = 64  # slots of a ring buffer beyond its window, for writing several tokens at once


@register("attention")
@dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Attention of a sequence to itself."""

    heads: int = 8  # query heads
    kv_heads: int | None = None  # key and value heads; none: one per query head
    head_size: int | None = None  # size of a head; none: width / heads
    pattern: Pattern = Causal()  # attention pattern
    rotary: RotaryConfig | None = None  # rotary position embedding; none: no rotary positions
    qk_norm: NormConfig | None = None  # norm of queries and keys (Henry et al. 2020)
    qk_norm_over: Literal["head", "all", "each"] = "head"  # norm per head, over all heads, or with weights per head
    qkv_bias: bool | tuple[bool, bool, bool] = True  # whether query, key and value have biases (one value or three)
    out_bias: bool = True  # whether the output projection has a bias
    scale: float | None = None  # factor on scores; none: 1 / sqrt(head size)
    bias: str | None = None  # name of a score bias of the stack
    soft_cap: float | None = None  # c turns scores into c tanh(scores / c) (Gemma 2)
    sinks: bool = False  # attention sinks: a trained logit per head in the softmax, without a value
    dropout: float = 0.0  # dropout rate of attention weights
    placed: bool = False  # whether the stack's positions are added to queries and keys (Carion et al. 2020, figure 10)

    @property
    def causal(self) -> bool:
        return self.pattern.causal

    def build(self, width: int, biases: nn.ModuleDict) -> SelfAttention:
        return SelfAttention(self, width, biases)


def head_size(heads: int, size: int | None, width: int) -> int:
    """K: `size` if set, otherwise width / heads."""
    if heads < 1:
        raise ConfigError(f"heads is {heads}; set 1 or more")
    if size is None and width % heads:
        choices = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
        raise ConfigError(f"width {width} is not divisible by heads {heads}; choose heads from {choices}")
    chosen_size = size or width // heads
    if chosen_size > _LARGEST_HEAD:
        raise ConfigError(f"the head size {chosen_size} exceeds {_LARGEST_HEAD}; lower head_size, or raise heads")
    return chosen_size


def shared_heads(heads: int, kv_heads: int | None) -> int:
    """G: the number of key and value heads."""
    groups = kv_heads or heads
    if groups < 1:
        raise ConfigError(f"heads={heads} and kv_heads={kv_heads}: both must be at least 1")
    if heads % groups:
        choices = ", ".join(str(n) for n in range(1, min(heads, 64) + 1) if heads % n == 0)
        raise ConfigError(f"heads {heads} is not divisible by kv_heads {groups}; choose kv_heads from {choices}")
    return groups


class LayeredBias(nn.Module):
    """Base of score biases from queries and keys, for which each layer has a module of its own."""

    def layer(self, width: int, heads: int, groups: int, size: int) -> nn.Module:
        """A layer's module: from (q, k, query layout, key layout, qkv projection) to [B, H, T, S], not scaled."""
        raise NotImplementedError


class QKNorm(nn.Module):
    """One norm for the queries and one for the keys of every head; without weights both are one call."""

    def __init__(self, config: NormConfig, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.q, self.k = config.build(size), config.build(size)
        self.parts = (heads, groups)
        self.same = not list(self.q.parameters())

    def forward(self, qk: Float[Tensor, "B T HG K"]) -> Float[Tensor, "B T HG K"]:
        if self.same:
            return self.q(qk)
        q, k = qk.split(self.parts, dim=2)
        return torch.cat([self.q(q), self.k(k)], dim=2)


class KeyValues(NamedTuple):
    """Keys and values by slot; the token at position p is in slot p modulo the number of slots."""

    keys: Float[Tensor, "B S G K"]
    values: Float[Tensor, "B S G V"]


class SelfAttention(Mixer):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) with grouped keys and values (Ainslie et al. 2023)."""

    rewindable = True

    def __init__(self, config: AttentionConfig, width: int, biases: nn.ModuleDict) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.heads = config.heads
        self.groups = shared_heads(config.heads, config.kv_heads)
        self.size = head_size(config.heads, config.head_size, width)
        inner, shared = self.heads * self.size, self.groups * self.size
        self.qkv = Projection(width, (inner, shared, shared), config.qkv_bias)
        self.out = Projection(inner, width, config.out_bias, residual=True)
        norm: Any = QKNorm
        if config.qk_norm_over != "head":  # a few families; most programs need no other norm
            from headway.nn.mixers.qk_norms import EachQKNorm, WideQKNorm

            norm = WideQKNorm if config.qk_norm_over == "all" else EachQKNorm
        self.qk_norm = norm(config.qk_norm, self.heads, self.groups, self.size) if config.qk_norm else None
        self.rotary = Rotary(config.rotary, self.size) if config.rotary else None
        if self.rotary is not None and self.rotary.config.stored:
            self.rotary.frequencies = self.rotary.frequencies.float()
            self.register_buffer("frequencies", self.rotary.frequencies)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config.sinks else None
        self.dropout = Dropout(config.dropout)
        self._window = config.pattern.window if isinstance(config.pattern, Causal) else None
        if config.bias is not None and config.bias not in biases:
            known = nearest(config.bias, biases.keys())
            raise ConfigError(f"attention uses the bias {config.bias!r}, which the stack does not have; {known}")
        # The Stack's bias of that name. A bound method is not a submodule, so the bias stays registered once.
        bias = None if config.bias is None else biases[config.bias]
        self._bias = None if bias is None else bias.forward
        shape = (width, self.heads, self.groups, self.size)
        self.terms = bias.layer(*shape) if isinstance(bias, LayeredBias) else None
        self._positions = shared_positions(biases) if config.placed else None

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        q, k, v = self._project(x, layout)
        return self._attend(x, q, k, v, View(self.config.pattern, layout, layout))

    def recurrent(self, x: Float[Tensor, "B T D"], layout: Layout, state: KeyValues) -> tuple[Tensor, KeyValues]:
        # On a GPU, a program waits to read a position, so no shape may depend on one; nor in an exported program.
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            if x.shape[1] == 1:
                return self._step(x, layout, state)
            if layout.dense or (layout.single and bool(layout.host.starts[:, 0].all())):  # documents from their start
                return self._prompt(x, layout, state)
        # At most as many tokens at once as do not overwrite keys that are still visible to the oldest of them.
        slots, window = state.keys.shape[1], self._window
        max_tokens = slots if window is None or slots < window + _SLACK else slots - window + 1
        if layout.group is not None and x.shape[1] > max_tokens:
            raise ConfigError(
                f"{x.shape[1]} tokens with bidirectional groups exceed the limit of "
                f"{max_tokens} at once for a KV cache of {slots} slots; widen the "
                "attention window"
            )
        outputs = []
        for start in range(0, x.shape[1], max_tokens):
            columns = slice(start, start + max_tokens)
            chunk_layout = layout if x.shape[1] <= max_tokens else Layout(layout.positions[:, columns])
            q, k, v = self._project(x[:, columns], chunk_layout)
            # Write keys and values to the slots of their positions, except for padding.
            rows, tokens, slot_ids = _slot_indices(chunk_layout, slots)
            # With gradients out of place, because autograd may still need the earlier state.
            put = Tensor.index_put if torch.is_grad_enabled() else Tensor.index_put_
            pairs = zip(state, (k, v))
            state = KeyValues(*(put(buffer, (rows, slot_ids), new[rows, tokens]) for buffer, new in pairs))
            key = _slot_layout(chunk_layout, slots)
            view = View(self.config.pattern, chunk_layout, key, one_document=True)
            keys, values = (buffer[:, : key.length] for buffer in state)
            outputs.append(self._attend(x[:, columns], q, keys, values, view))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), state

    def _prompt(self, x: Float[Tensor, "B T D"], layout: Layout, state: KeyValues) -> tuple[Tensor, KeyValues]:
        """`recurrent` for rows that start here: they see only each other, so causal kernels need no mask over slots."""
        q, k, v = self._project(x, layout)
        rows, tokens, slots = _slot_indices(layout, state.keys.shape[1])
        put = Tensor.index_put if torch.is_grad_enabled() else Tensor.index_put_
        state = KeyValues(*(put(buffer, (rows, slots), new[rows, tokens]) for buffer, new in zip(state, (k, v))))
        return self._attend(x, q, k, v, View(self.config.pattern, layout, layout)), state

    def _step(self, x: Float[Tensor, "B 1 D"], layout: Layout, state: KeyValues) -> tuple[Tensor, KeyValues]:
        """`recurrent` for one token per row over all slots, so that no shape depends on a position."""
        q, k, v = self._project(x, layout)
        slots = state.keys.shape[1]
        index = torch.arange(layout.batch, device=x.device)[:, None], layout.positions.clamp(min=0) % slots
        put = Tensor.index_put if torch.is_grad_enabled() else Tensor.index_put_
        is_token = layout.mask[..., None, None]  # padding writes what its slot has
        pairs = zip(state, (k, v))
        state = KeyValues(*(put(buffer, index, torch.where(is_token, new, buffer[index])) for buffer, new in pairs))
        key = Layout(_slot_positions(layout, slots, slots))
        view = View(self.config.pattern, layout, key, one_document=True)
        return self._attend(x, q, *state, view), state

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> KeyValues:
        slots = capacity if self._window is None else min(capacity, self._window + _SLACK)
        shape, dtype = (batch, slots, self.groups, self.size), self._dtype(like)
        return KeyValues(zeros(shape, like, dtype), zeros(shape, like, dtype))

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of queries, keys and values: that of `x`, or bf16 if the weights are stored in it."""
        return torch.bfloat16 if self.terms is None and is_stored_in_bf16(self.qkv.weight) else x.dtype

    def _project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads + 2 * self.groups, self.size)
        dtype = self._dtype(qkv)
        if (
            self.qk_norm is None and self.rotary is None and self._positions is None
        ):  # one split, so that gradients are concatenated once
            return qkv.to(dtype).split((self.heads, self.groups, self.groups), dim=2)
        qk, v = qkv.split((self.heads + self.groups, self.groups), dim=2)
        if self._positions is not None:
            # The layer is linear, so the positions of queries and keys are projected once for all rows.
            num_heads = self.heads + self.groups
            position_terms = linear(self._positions(layout, x), self.qkv.matrix()[: num_heads * self.size])
            qk = qk + position_terms.unflatten(-1, (num_heads, self.size))
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if self.rotary is not None:
            qk = rotate(qk, *self.rotary.angles(layout, qk))
        q, k = qk.to(dtype).split((self.heads, self.groups), dim=2)
        return q, k, v.to(dtype)

    def _score_bias(self, x: Tensor, q: Tensor, k: Tensor, view: View) -> Float[Tensor, "#B H T S"] | None:
        if self.terms is not None:
            return self.terms(q, k, view.query, view.key, self.qkv) * (self.config.scale or self.size**-0.5)
        return None if self._bias is None else self._bias(x, view.query, view.key)

    def _attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        y = attend(
            q,
            k,
            v,
            view,
            scale=self.config.scale,
            bias=self._score_bias(x, q, k, view),
            soft_cap=self.config.soft_cap,
            sinks=self.sinks,
            dropout=self.dropout.of_weights(),
        )
        return self.out(y.reshape(*x.shape[:2], self.heads * self.size))


def shared_positions(biases: nn.ModuleDict) -> Callable[[Layout, Tensor], Tensor]:
    """The Stack's positions, which stay registered once, in the Stack."""
    if POSITIONS not in biases:
        raise ConfigError(
            "attention has placed=true, but its stack has no positions; set the stack's positions, or placed=false"
        )
    return biases[POSITIONS].forward


@cached_on_host
def _slot_indices(layout: Layout, slots: int) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]:
    is_stored = layout.mask & (layout.positions > layout.positions.amax(1, keepdim=True) - slots)
    rows, columns = is_stored.nonzero(as_tuple=True)
    return rows, columns, layout.positions[rows, columns] % slots


def _slot_positions(layout: Layout, slots: int, used: int) -> Int[Tensor, "B S"]:
    """The positions in the first `used` slots after these tokens are written: the newest of each slot, negative for
    empty slots.
    """
    last = layout.positions.amax(dim=1, keepdim=True)
    steps = torch.arange(used, device=last.device)
    return (last - (last - steps) % slots).clamp(min=-1)


@cached_on_host
def _slot_layout(layout: Layout, slots: int) -> Layout:
    """The layout of the slots that are in use after these tokens are written."""
    positions = _slot_positions(layout, slots, max(1, min(slots, int(layout.positions.max()) + 1)))
    group = None
    if layout.group is not None:  # only for the new tokens: earlier ones are attended to causally, whatever their group
        rows, columns, slot_ids = _slot_indices(layout, slots)
        group = torch.zeros_like(positions).index_put_((rows, slot_ids), layout.group[rows, columns])
    return Layout(positions, group=group)
