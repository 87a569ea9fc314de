"""Lowering of blocks to instructions: norms, residuals and feed-forwards around a mixer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from headway.engine.builder import Builder, Slot, offset_of
from headway.engine.lowering import feed_forward
from headway.nn.mixers.attention import SelfAttention
from headway.nn.models.block import Block, Branch, LayerScale, ParallelBlock
from headway.nn.models.stack import Stack
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
            self.build.add(inner, out.matrix(), offset_of(out), self.x)
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
