"""Self-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError, nearest
from headway.layout import Layout, once_a_layout
from headway.nn.kernels.attend import View, attend, rotate
from headway.nn.kernels.linear import linear
from headway.nn.mixers.base import Mixer, MixerConfig, zeros
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import Rotary, RotaryConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Causal, Pattern

_LARGEST_HEAD = 1 << 16  # rotary angles of a head are computed when a model is built, before its weights have room
POSITIONS = "positions"  # the name of a Stack's own among what its blocks share
_SLACK = 64  # tokens that a ring of keys takes at once beyond its window


@register("attention")
@dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Attention of a sequence to itself.

    `kv_heads` None gives each query head its own key and value; `head_size` None is width / heads; `qk_norm`
    normalises queries and keys a head (Henry et al. 2020) or, with `qk_norm_over` "all", all heads together (OLMo 2);
    `qkv_bias` may be said for each of query, key and value; `bias` names a score bias of the Stack; `soft_cap` and
    `sinks` as in `headway.nn.kernels.attend`; `scale` None is 1 / sqrt(head size). With `placed` the Stack's positions
    are added to what queries and keys are made of, and not to values (Carion et al. 2020, figure 10).
    """

    heads: int = 8  # query heads
    kv_heads: int | None = None
    head_size: int | None = None
    pattern: Pattern = Causal()  # who may see whom
    rotary: RotaryConfig | None = None  # rotary position embedding; none: no positions here
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "all"] = "head"  # each head by itself, or all heads together
    qkv_bias: bool | tuple[bool, bool, bool] = True
    out_bias: bool = True  # of the output projection
    scale: float | None = None
    bias: str | None = None
    soft_cap: float | None = None  # c turns scores into c tanh(scores / c) (Gemma 2)
    sinks: bool = False  # a trained logit a head that takes part in the softmax and has no value
    dropout: float = 0.0  # of attention weights
    placed: bool = False  # whether queries and keys get the positions of the stack

    @property
    def causal(self) -> bool:
        return self.pattern.causal

    def build(self, width: int, biases: nn.ModuleDict) -> SelfAttention:
        return SelfAttention(self, width, biases)


def head_size(heads: int, size: int | None, width: int) -> int:
    """K: as stated, or width / heads."""
    if heads < 1:
        raise ConfigError(f"heads {heads} is not a number of heads; give 1 or more")
    if size is None and width % heads:
        fitting = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
        raise ConfigError(f"width {width} is not divisible by heads {heads}; choose heads from {fitting}")
    found = size or width // heads
    if found > _LARGEST_HEAD:
        raise ConfigError(f"a head of {found} numbers is larger than {_LARGEST_HEAD}; lower head_size, or raise heads")
    return found


def shared_heads(heads: int, kv_heads: int | None) -> int:
    """G: the number of key and value heads."""
    groups = kv_heads or heads
    if groups < 1:
        raise ConfigError(f"heads {heads} and kv_heads {kv_heads} are not numbers of heads; give 1 or more")
    if heads % groups:
        fitting = ", ".join(str(n) for n in range(1, min(heads, 64) + 1) if heads % n == 0)
        raise ConfigError(f"heads {heads} is not divisible by kv_heads {groups}; choose kv_heads from {fitting}")
    return groups


class QKNorm(nn.Module):
    """One norm for the queries and one for the keys of every head; those without weights are one call."""

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


class WideQKNorm(nn.Module):
    """One norm over the queries of all heads together, and one over the keys."""

    def __init__(self, config: NormConfig, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.q, self.k = config.build(heads * size), config.build(groups * size)
        self.parts = (heads, groups)

    def forward(self, qk: Float[Tensor, "B T HG K"]) -> Float[Tensor, "B T HG K"]:
        q, k = qk.split(self.parts, dim=2)
        both = [norm(part.flatten(2)).view(part.shape) for norm, part in ((self.q, q), (self.k, k))]
        return torch.cat(both, dim=2)


class KeyValues(NamedTuple):
    """Keys and values by slot; the token at position p lies in slot p modulo the number of slots."""

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
        self.out = Projection(inner, width, config.out_bias, writes=True)
        norm = WideQKNorm if config.qk_norm_over == "all" else QKNorm
        self.qk_norm = norm(config.qk_norm, self.heads, self.groups, self.size) if config.qk_norm else None
        self.rotary = Rotary(config.rotary, self.size) if config.rotary else None
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config.sinks else None
        self.dropout = Dropout(config.dropout)
        self._bias = _shared_bias(config.bias, biases)
        self._positions = shared_positions(biases) if config.placed else None

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        q, k, v = self._project(x, layout)
        return self._attend(x, q, k, v, View(self.config.pattern, layout, layout))

    def recurrent(self, x: Float[Tensor, "B T D"], layout: Layout, state: KeyValues) -> tuple[Tensor, KeyValues]:
        outputs = []
        if layout.group is not None and x.shape[1] > self._most(state):
            raise ConfigError(
                f"{x.shape[1]} tokens, among them such that see each other both ways, do not fit at once into the "
                f"{self._most(state)} that a window of {state.keys.shape[1]} takes; widen the window of the attention"
            )
        for start in range(0, x.shape[1], self._most(state)):
            columns = slice(start, start + self._most(state))
            piece = layout if x.shape[1] <= self._most(state) else Layout(layout.positions[:, columns])
            q, k, v = self._project(x[:, columns], piece)
            state = KeyValues(*(_write(buffer, new, piece) for buffer, new in zip(state, (k, v))))
            key = _slot_layout(piece, state.keys.shape[1])
            view = View(self.config.pattern, piece, key, one_document=True)
            keys, values = (buffer[:, : key.length] for buffer in state)
            outputs.append(self._attend(x[:, columns], q, keys, values, view))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), state

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> KeyValues:
        window = self.config.pattern.window if isinstance(self.config.pattern, Causal) else None
        slots = capacity if window is None else min(capacity, window + _SLACK)
        shape = (batch, slots, self.groups, self.size)
        return KeyValues(zeros(shape, like), zeros(shape, like))

    def _project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads + 2 * self.groups, self.size)
        if (
            self.qk_norm is None and self.rotary is None and self._positions is None
        ):  # in one, whose gradients are then put together once
            return qkv.split((self.heads, self.groups, self.groups), dim=2)
        qk, v = qkv.split((self.heads + self.groups, self.groups), dim=2)
        if self._positions is not None:
            # The maps are linear, so what positions add to queries and keys is mapped once for all rows.
            both = self.heads + self.groups
            placed = linear(self._positions(layout, x), self.qkv.matrix()[: both * self.size])
            qk = qk + placed.unflatten(-1, (both, self.size))
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if self.rotary is not None:
            qk = rotate_by(self.rotary, qk, layout)
        q, k = qk.split((self.heads, self.groups), dim=2)
        return q, k, v

    def _attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        y = attend(
            q,
            k,
            v,
            view,
            scale=self.config.scale,
            bias=self._bias(x, view.query, view.key),
            soft_cap=self.config.soft_cap,
            sinks=self.sinks,
            dropout=self.dropout if self.training and self.config.dropout else None,
        )
        return self.out(y.reshape(*x.shape[:2], self.heads * self.size))

    def _most(self, state: KeyValues) -> int:
        """Tokens that can be written at once before the oldest of them would lose a key that it still sees."""
        window = self.config.pattern.window if isinstance(self.config.pattern, Causal) else None
        slots = state.keys.shape[1]
        if window is None or slots < window + _SLACK:
            return slots
        return slots - window + 1


def rotate_by(rotary: Rotary, x: Float[Tensor, "B T H K"], layout: Layout) -> Float[Tensor, "B T H K"]:
    cos, sin = rotary.angles(layout, x)
    return rotate(x, cos, sin)


def _shared_bias(name: str | None, biases: nn.ModuleDict) -> Callable[[Tensor, Layout, Layout], Tensor | None]:
    """The Stack's bias of that name. A bound method is no submodule, so the bias stays registered once, in the
    Stack.
    """
    if name is None:
        return lambda x, query, key: None
    if name not in biases:
        raise ConfigError(
            f"attention names a bias {name!r} that the stack does not have; {nearest(name, biases.keys())}"
        )
    return biases[name].forward


def shared_positions(biases: nn.ModuleDict) -> Callable[[Layout, Tensor], Tensor]:
    """The Stack's positions, which stay registered once, in the Stack."""
    if POSITIONS not in biases:
        raise ConfigError(
            "an attention is placed, and its stack has no positions; set the stack's positions, or placed=false"
        )
    return biases[POSITIONS].forward


def _write(buffer: Tensor, new: Tensor, layout: Layout) -> Tensor:
    """`buffer` with `new` at the slots of its positions; padding is not written."""
    rows, columns, places = _places(layout, buffer.shape[1])
    values = new[rows, columns]
    if torch.is_grad_enabled():  # autograd may still need the earlier state
        return buffer.index_put((rows, places), values)
    return buffer.index_put_((rows, places), values)


@once_a_layout
def _places(layout: Layout, slots: int) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]:
    rows, columns = layout.keep.nonzero(as_tuple=True)
    return rows, columns, layout.positions[rows, columns] % slots


@once_a_layout
def _slot_layout(layout: Layout, slots: int) -> Layout:
    """The positions that the slots hold once these tokens are written: the newest of each slot, -1 where none is."""
    last = layout.positions.amax(dim=1, keepdim=True)
    used = min(slots, int(last.max()) + 1)
    steps = torch.arange(max(used, 1), device=last.device)
    positions = last - (last - steps) % slots
    group = None
    if layout.group is not None:  # of what these tokens write: earlier ones are seen causally, whatever their group
        rows, columns, places = _places(layout, slots)
        group = torch.zeros_like(positions).index_put_((rows, places), layout.group[rows, columns])
    return Layout(positions.clamp(min=-1), group=group)
