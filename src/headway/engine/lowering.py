"""Attention and feed-forwards as instructions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from headway.engine import operations as code
from headway.engine.builder import Builder, CannotLowerError, Slot, norm_parts, offset_of
from headway.engine.cache import Memory
from headway.engine.keys import HEADS, block_bytes
from headway.engine.operations import BLOCK, GATED
from headway.engine.program import SHARING, Opcode
from headway.layout import Layout
from headway.nn.mixers.attention import QKNorm, SelfAttention, WideQKNorm
from headway.nn.mixers.cross import CrossAttention
from headway.nn.parts.feedforward import ACTIVATIONS, MLP, Experts, Gated
from headway.nn.parts.projection import Projection
from headway.visibility import Causal


class AttentionLowering:
    """Lowers attention over blocks of positions below `capacity`. Each layer's keys begin at a byte of the blocks, its
    `offset`. Rotary angles and biases by distance are tables, which the modules themselves fill.
    """

    def __init__(self, build: Builder, own: Memory, memory: Memory, capacity: int) -> None:
        self.build, self.memories, self.capacity = build, (own, memory), capacity
        self.rotary: dict[Any, tuple[int, int, int]] = {}

    def own(self, mixer: SelfAttention, x: Slot, offset: int) -> Slot:
        heads, groups, size, pattern = mixer.heads, mixer.groups, mixer.size, mixer.config.pattern
        assert isinstance(pattern, Causal)  # plan.check sees to it
        qkv = self.build.shared((heads + 2 * groups) * size)
        self.build.multiply(x, mixer.qkv.matrix(), offset_of(mixer.qkv), qkv)
        self.build.barrier()
        if isinstance(mixer.qk_norm, WideQKNorm):
            q, k = qkv.columns(0, heads * size), qkv.columns(heads * size, groups * size)
            self.build.norm(mixer.qk_norm.q, q, q)
            self.build.norm(mixer.qk_norm.k, k, k)
            self.build.barrier()
        norms = (mixer.qk_norm.q, mixer.qk_norm.k) if isinstance(mixer.qk_norm, QKNorm) else None
        angles = (0, 0, 0) if mixer.rotary is None else self._angles(mixer)
        bias = self._bias(mixer)
        return self._attend(
            qkv, heads, groups, size, self.memories[0], offset,
            writes=True, norms=norms, angles=angles, window=pattern.window or 0, bias=bias,
            cap=mixer.config.soft_cap or 0.0, scale=mixer.config.scale, sinks=mixer.sinks,
        )  # fmt: skip

    def read(self, cross: CrossAttention, x: Slot, offset: int) -> Slot:
        heads, groups, size = cross.heads, cross.groups, cross.size
        q = self.build.shared(heads * size)
        self.build.multiply(x, cross.q.matrix(), offset_of(cross.q), q)
        self.build.barrier()
        norms = None if isinstance(cross.q_norm, nn.Identity) else (cross.q_norm, cross.k_norm)
        return self._attend(q, heads, groups, size, self.memories[1], offset, norms=norms, scale=cross.config.scale)

    def _attend(
        self,
        qkv: Slot,
        heads: int,
        groups: int,
        size: int,
        memory: Memory,
        offset: int,
        *,
        writes: bool = False,
        norms: tuple[nn.Module, nn.Module] | None = None,
        angles: tuple[int, int, int] = (0, 0, 0),
        window: int = 0,
        bias: int = 0,
        cap: float = 0.0,
        scale: float | None = None,
        sinks: Tensor | None = None,
    ) -> Slot:
        kind, eps, parts = -1, 0.0, [None, None, None, None]
        if norms is not None:
            (kind, q_weight, q_bias, eps), (_, k_weight, k_bias, _) = map(norm_parts, norms)
            parts = [q_weight, q_bias, k_weight, k_bias]
        q_weight, q_bias, k_weight, k_bias = map(self.build.constant, parts)
        pieces = self.build.pieces(heads, size)
        self.build.emit(
            Opcode.ATTEND,
            qkv=qkv.address, stride=qkv.stride, heads=heads, groups=groups, size=size, writes=writes,
            norm=kind, q_weight=q_weight, q_bias=q_bias, k_weight=k_weight, k_bias=k_bias,
            cos=angles[0], sin=angles[1], half=angles[2], window=window, bias=bias, span=self.capacity,
            tables=memory.tables.ctypes.data, table_step=memory.tables.shape[1], lengths=memory.lengths.ctypes.data,
            layer=offset, pieces=pieces.address, q=self.build.private_bytes(4 * max(heads // groups, SHARING) * size),
            scores=self.build.private_bytes(4 * max(HEADS * (BLOCK + 1), size)), form=memory.form,
            group_bytes=block_bytes(memory.form, 1, size, size), sharing=0 if writes else memory.sharing.ctypes.data,
            eps=eps, cap=cap, scale=scale or 1 / math.sqrt(size),
        )  # fmt: skip
        self.build.barrier()
        out = self.build.small(heads * size)
        self.build.merge(pieces, heads, groups, out, sinks)
        return out

    def _angles(self, mixer: SelfAttention) -> tuple[int, int, int]:
        rotary = mixer.rotary
        assert rotary is not None
        key = (rotary.config, rotary.size)
        if key not in self.rotary:
            cos, sin = rotary.angles(Layout.full(1, self.capacity), torch.zeros(1))
            half = cos.shape[-1]
            self.rotary[key] = (self.build.constant(cos), self.build.constant(sin), half)
        return self.rotary[key]

    def _bias(self, mixer: SelfAttention) -> int:
        """Biases by distance, [H, capacity]: what the last query sees, from itself backwards."""
        positions = torch.arange(self.capacity)[None]
        found = mixer._bias(torch.zeros(1), Layout(positions[:, -1:]), Layout(positions))
        if found is None:
            return 0
        return self.build.constant(found[0, :, 0].flip(-1))


_CODES = {
    "relu": code.RELU,
    "gelu": code.GELU,
    "gelu_tanh": code.GELU_TANH,
    "quick_gelu": code.QUICK_GELU,
    "relu_squared": code.RELU_SQUARED,
    "silu": code.SILU,
    "tanh": code.TANH,
}


def activation_code(function: Any) -> int:
    """The engine's number of a function of ACTIVATIONS."""
    for name, known in ACTIVATIONS.items():
        if known.args == getattr(function, "args", None):  # a copy of a model has copies of these
            return _CODES[name]
    raise CannotLowerError(f"the activation {function}")


def feed_forward(build: Builder, feed: nn.Module | None, x: Slot) -> tuple[Slot, nn.Module]:
    """The inner units of each row, and the projection that is still to follow; after experts none."""
    if isinstance(feed, Experts):
        return _experts(build, feed, x), nn.Identity()
    if isinstance(feed, MLP):
        hidden = build.shared(feed.up.weight.shape[0])
        build.multiply(x, feed.up.matrix(), offset_of(feed.up), hidden, activation=activation_code(feed.activation))
    elif isinstance(feed, Gated):
        hidden = build.shared(feed.gate_up.weight.shape[0] // 2)
        matrix, offset = feed.gate_up.matrix(), offset_of(feed.gate_up)
        build.multiply(x, matrix, offset, hidden, GATED, activation_code(feed.activation))
    else:
        raise CannotLowerError(f"the feed-forward {type(feed).__name__}")
    build.barrier()
    return hidden, feed.down


def _experts(build: Builder, feed: Experts, x: Slot) -> Slot:
    count = feed.config.count
    logits, total, said = build.project(x, feed.router), build.shared(x.width), build.shared(x.width)
    weights = build.private(count)
    build.barrier()
    build.emit(
        Opcode.ROUTE, logits=logits.address, stride=logits.stride, count=count, active=feed.config.active,
        normalise=feed.config.normalise, weights=weights.address, sum=total.address, sum_stride=total.stride,
        width=x.width,
    )  # fmt: skip
    for number, expert in enumerate(feed.experts):
        with build.unless_idle(weights, number):
            hidden, out = feed_forward(build, expert, x)
            assert isinstance(out, Projection)
            build.project(hidden, out, said)
            build.emit(
                Opcode.WEIGH, weights=weights.address, count=count, expert=number, src=said.address,
                src_stride=said.stride, sum=total.address, sum_stride=total.stride, width=x.width,
            )  # fmt: skip
    build.barrier()
    return total
