"""Attention as instructions: of a sequence to itself, and to a memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from headway.engine.builder import Builder
from headway.engine.keys import HEADS, block_bytes
from headway.engine.memories import Memory
from headway.engine.operations import BLOCK
from headway.engine.parts import norm_parts, offset_of
from headway.engine.places import Place
from headway.engine.program import SHARING, Kind
from headway.layout import Layout
from headway.mixers.attention import Attention, QKNorm, WideQKNorm
from headway.mixers.cross import CrossAttention
from headway.visibility import Causal


class AttentionLowering:
    """Lowers attention over blocks of positions below `capacity`. Each layer's keys begin at a byte of the blocks, its
    `offset`. Rotary angles and biases by distance are tables, which the modules themselves fill.
    """

    def __init__(self, build: Builder, own: Memory, memory: Memory, capacity: int) -> None:
        self.build, self.memories, self.capacity = build, (own, memory), capacity
        self.rotary: dict[Any, tuple[int, int, int]] = {}

    def own(self, mixer: Attention, x: Place, offset: int) -> Place:
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

    def read(self, cross: CrossAttention, x: Place, offset: int) -> Place:
        heads, groups, size = cross.heads, cross.groups, cross.size
        q = self.build.shared(heads * size)
        self.build.multiply(x, cross.q.matrix(), offset_of(cross.q), q)
        self.build.barrier()
        norms = None if isinstance(cross.q_norm, nn.Identity) else (cross.q_norm, cross.k_norm)
        return self._attend(q, heads, groups, size, self.memories[1], offset, norms=norms, scale=cross.config.scale)

    def _attend(
        self,
        qkv: Place,
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
    ) -> Place:
        kind, eps, parts = -1, 0.0, [None, None, None, None]
        if norms is not None:
            (kind, q_weight, q_bias, eps), (_, k_weight, k_bias, _) = map(norm_parts, norms)
            parts = [q_weight, q_bias, k_weight, k_bias]
        q_weight, q_bias, k_weight, k_bias = map(self.build.constant, parts)
        pieces = self.build.pieces(heads, size)
        self.build.emit(
            Kind.ATTEND,
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

    def _angles(self, mixer: Attention) -> tuple[int, int, int]:
        rotary = mixer.rotary
        assert rotary is not None
        key = (rotary.config, rotary.size)
        if key not in self.rotary:
            cos, sin = rotary.angles(Layout.full(1, self.capacity), torch.zeros(1))
            half = cos.shape[-1]
            self.rotary[key] = (self.build.constant(cos), self.build.constant(sin), half)
        return self.rotary[key]

    def _bias(self, mixer: Attention) -> int:
        """Biases by distance, [H, capacity]: what the last query sees, from itself backwards."""
        positions = torch.arange(self.capacity)[None]
        found = mixer._bias(torch.zeros(1), Layout(positions[:, -1:]), Layout(positions))
        if found is None:
            return 0
        return self.build.constant(found[0, :, 0].flip(-1))
