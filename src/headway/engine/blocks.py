"""Lowering of blocks to instructions: norms, residuals and feed-forwards around a mixer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from headway.engine.builder import Builder, Slot, norm_parts
from headway.engine.lowering import feed_forward
from headway.engine.operations import ADD
from headway.layout import Layout
from headway.nn.mixers.attention import SelfAttention, WideQKNorm
from headway.nn.models.block import Block, Branch, LayerScale, ParallelBlock
from headway.nn.models.stack import Stack
from headway.nn.parts.positions import Rotary
from headway.nn.parts.projection import Projection

Inner = tuple[Slot, nn.Module]  # a branch's output, and the projection that is still to be applied


def unread_by_blocks(stack: Stack) -> Iterator[nn.Parameter]:
    """Parameters that no block of a stack reads: biases without attention that uses them, and positions, for which
    attention has no instruction.
    """
    used = {block.mixer.config.bias for block in stack.blocks if isinstance(block.mixer, SelfAttention)}
    for name, bias in stack.biases.items():
        if name not in used:
            yield from bias.parameters()
    if stack.positions is not None:
        yield from stack.positions.parameters()


class BlockLowering:
    """Lowers blocks over the residual stream `x`; subclasses lower mixers and cross-attention."""

    def __init__(self, build: Builder, width: int) -> None:
        self.build, self.x = build, build.lasting(width)
        self.normed: dict[int, Slot] = {}  # by width
        self._angles: dict[Any, dict[str, int]] = {}

    def mix(self, block: Block, x: Slot) -> Inner:
        raise NotImplementedError

    def read(self, block: Block, x: Slot) -> Inner:
        raise NotImplementedError

    def block(self, block: Block) -> None:
        if isinstance(block, ParallelBlock):
            self._parallel(block)
            return
        self._branch(block.mix, lambda x: self.mix(block, x))
        if block.cross is not None and block.read is not None:
            self._branch(block.read, lambda x: self.read(block, x))
        if block.feed_forward is not None and block.feed is not None:
            self._branch(block.feed, lambda x: feed_forward(self.build, block.feed_forward, x))

    def _parallel(self, block: ParallelBlock) -> None:
        first = self.norm(block.mix.before, self.x)
        second, feed_output = first, None
        if block.feed is not None and block.feed.before is not block.mix.before:
            second = self.norm(block.feed.before, self.x, self.build.small(self.x.width))
        mix_output = self.mix(block, first)
        if block.feed is not None:
            feed_output = feed_forward(self.build, block.feed_forward, second)
        self._join(block.mix, *mix_output)
        if block.feed is not None and feed_output is not None:
            self._join(block.feed, *feed_output)

    def _branch(self, branch: Branch, function: Callable[[Slot], Inner]) -> None:
        self._join(branch, *function(self.norm(branch.before, self.x)))

    def _join(self, branch: Branch, inner: Slot, out: nn.Module) -> None:
        """x = last(x + gain x after(out(inner))). Without a residual x may change its width."""
        gain = branch.gain.gain if isinstance(branch.gain, LayerScale) else None
        plain = isinstance(branch.after, nn.Identity) and gain is None and branch.residual
        if plain and isinstance(out, Projection):
            self.build.project(inner, out, self.x, ADD)
        else:
            if isinstance(out, Projection):
                inner = self.build.project(inner, out)
                self.build.barrier()
            y = self.norm(branch.after, inner, self.build.small(inner.width))
            if y.width != self.x.width:
                self.x = self.build.lasting(y.width)
            self.build.sum(y, self.x, branch.residual, gain)
        self.build.barrier()
        if not isinstance(branch.last, nn.Identity):
            self.norm(branch.last, self.x, self.x)
            self.build.barrier()

    def norm(self, norm: nn.Module, x: Slot, into: Slot | None = None) -> Slot:
        """Normalised rows, in scratch unless `into` is given; an identity returns its input."""
        if isinstance(norm, nn.Identity):
            return x
        if x.width not in self.normed:
            self.normed[x.width] = self.build.small(x.width, lasting=True)
        y = into or self.normed[x.width]
        self.build.norm(norm, x, y)
        return y

    def qkv(self, mixer: SelfAttention, x: Slot) -> Slot:
        """Queries, keys and values, normalised if one norm covers all heads."""
        qkv = self.build.project(x, mixer.qkv)
        self.build.barrier()
        if isinstance(mixer.qk_norm, WideQKNorm):
            width = mixer.heads * mixer.size
            q, k = qkv.columns(0, width), qkv.columns(width, mixer.groups * mixer.size)
            self.build.norm(mixer.qk_norm.q, q, q)
            self.build.norm(mixer.qk_norm.k, k, k)
            self.build.barrier()
        return qkv

    def head_norms(self, norms: tuple[nn.Module, nn.Module] | None) -> dict[str, Any]:
        """Operands of attention for the norms of each head's queries and keys."""
        if norms is None:
            return {"norm": -1, "q_weight": 0, "q_bias": 0, "k_weight": 0, "k_bias": 0, "eps": 0.0}
        (kind, q_weight, q_bias, eps), (_, k_weight, k_bias, _) = map(norm_parts, norms)
        parts = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
        return {"norm": kind, "eps": eps, **{name: self.build.constant(part) for name, part in parts.items()}}

    def angles(self, rotary: Rotary | None, length: int) -> dict[str, int]:
        """Operands of attention for rotary positions below `length`."""
        if rotary is None:
            return {"cos": 0, "sin": 0, "half": 0}
        kind = (rotary.config, rotary.size)
        if kind not in self._angles:
            cos, sin = rotary.angles(Layout.full(1, length), torch.zeros(1))
            self._angles[kind] = {
                "cos": self.build.constant(cos),
                "sin": self.build.constant(sin),
                "half": cos.shape[-1],
            }
        return self._angles[kind]
