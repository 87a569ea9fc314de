"""A block: a mixer along time, cross-attention and a feed-forward layer, each added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers.attention import AttentionConfig
from headway.nn.mixers.base import Memory, MixerConfig, State
from headway.nn.mixers.cross import CrossAttentionConfig
from headway.nn.parts.dropout import Dropout, DropPath
from headway.nn.parts.feedforward import ActivationName, FeedForwardConfig, MLPConfig, Terms
from headway.nn.parts.norm import LayerNormConfig, NormConfig

Placement = Literal["pre", "post", "sandwich", "branch", "parallel", "none"]


@dataclass(frozen=True)
class ConvolutionConfig:
    """A convolution of a block's input, whose activation is added to the block's output before another norm."""

    taps: int = 3  # tokens that each output depends on: an odd number
    activation: ActivationName = "tanh"  # activation of the convolution

    def __post_init__(self) -> None:
        if self.taps < 1 or self.taps % 2 == 0:
            raise ConfigError(f"convolution.taps is {self.taps}; set an odd number, such as 3")


@dataclass(frozen=True)
class BlockConfig:
    """The order of residual and norm, for each branch f of the block:

    pre: x + f(norm(x)); post: norm(x + f(x)) (2017); sandwich: x + norm(f(norm(x))); branch: x + norm(f(x)) (OLMo 2);
    parallel: x + mixer(norm(x)) + feed_forward(norm(x)), with one norm each or one `shared_norm`; none: x + f(x).
    `mixer_norm` false omits the norm before the mixer (ModernBERT's first layer, whose input is normalised already).
    `residual` false omits x from each sum (plain classical stacks). `layer_scale` is the initial value of a trained
    gain on each branch (Touvron et al. 2021); none: no gain. `drop_path` is the probability of skipping a branch for a
    row, in training (stochastic depth, Huang et al. 2016).
    """

    mixer: MixerConfig = AttentionConfig()  # layer that mixes along time
    cross: CrossAttentionConfig | None = None  # attention to an encoder's output; none: no cross-attention
    feed_forward: FeedForwardConfig | None = MLPConfig()  # layer after the mixer; none: no feed-forward layer
    norm: NormConfig = LayerNormConfig()  # kind of all norms of the block
    placement: Placement = "pre"  # position of the norms
    shared_norm: bool = False  # one norm for both branches of a parallel block
    mixer_norm: bool = True  # whether a norm precedes the mixer
    residual: bool = True  # whether each branch is added to its input
    dropout: float = 0.0  # dropout rate of each branch's output
    layer_scale: float | None = None
    drop_path: float = 0.0
    branch_scale: float = 1.0  # fixed factor on each branch's output (Granite)
    convolution: ConvolutionConfig | None = None  # convolution next to the block; none: no convolution


class BlockOutput(NamedTuple):
    x: Float[Tensor, "B T D"]
    state: State | None
    terms: Terms  # auxiliary losses by name


class LayerScale(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Branch(nn.Module):
    """A residual branch: norms before and after a function and after the sum, dropout, gain and residual."""

    def __init__(self, config: BlockConfig, width: int, width_out: int | None = None) -> None:
        super().__init__()
        placement, out = config.placement, width_out or width
        self.before = config.norm.build(width) if placement in ("pre", "sandwich", "parallel") else nn.Identity()
        self.after = config.norm.build(out) if placement in ("sandwich", "branch") else nn.Identity()
        self.last = config.norm.build(out) if placement == "post" else nn.Identity()
        self.gain = LayerScale(out, config.layer_scale) if config.layer_scale is not None else nn.Identity()
        self.scale = config.branch_scale
        self.dropout = Dropout(config.dropout)
        self.path = DropPath(config.drop_path) if config.drop_path else nn.Identity()
        self.residual = config.residual

    def forward(self, x: Tensor, function: Callable[[Tensor], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        y, extra = function(self.before(x))
        return self.join(x, y), extra

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.path(self.dropout(self.gain(self.after(y))))
        y = y if self.scale == 1.0 else y * self.scale
        return self.last(x + y if self.residual else y)


class Block(nn.Module):
    """One layer of a Stack, with output width `width`. Its cross-attention or its mixer reads the memory."""

    def __init__(self, config: BlockConfig, width: int, biases: nn.ModuleDict) -> None:
        super().__init__()
        self.mixer = config.mixer.build(width, biases)
        kind, self.width = type(config.mixer).__name__, config.mixer.width_out(width)
        if self.width != width and (config.residual or config.placement == "parallel"):
            raise ConfigError(
                f"{kind} outputs {self.width} features per token in a model of width {width}, so its output cannot be "
                "added to its input; set its out to true to project back, or set the block's residual to false"
            )
        if config.mixer.reads_memory and config.cross is not None:
            raise ConfigError(f"{kind} reads the memory itself; remove the block's cross-attention")

        self.mix = Branch(config, width, self.width)
        width = self.width
        if not config.mixer_norm:
            self.mix.before = nn.Identity()
        self.cross = config.cross.build(width, biases) if config.cross else None
        self.read = Branch(config, width) if config.cross else None
        self.feed_forward = config.feed_forward.build(width) if config.feed_forward else None
        self.feed = Branch(config, width) if config.feed_forward else None
        if config.shared_norm and self.feed is not None:
            self.feed.before = self.mix.before

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: State | None = None, memory: Memory | None = None
    ) -> BlockOutput:
        return self.run_with_mixer(x, layout, memory, lambda h: self.mixer(h, layout, state, memory))

    def encode(self, x: Float[Tensor, "B T D"], layout: Layout) -> BlockOutput:
        """Process whole documents, one per row; the state holds the mixer's final vectors (`Mixer.encode`)."""
        return self.run_with_mixer(x, layout, None, lambda h: self.mixer.encode(h, layout))

    def remember(
        self, encoded: Float[Tensor, "M S E"], layout: Layout, positions: Float[Tensor, "#M S E"] | None = None
    ) -> Memory | None:
        """This block's projection of an encoder's output; None if it does not read one."""
        if self.mixer.reads_memory:
            return self.mixer.remember(encoded, layout)
        return None if self.cross is None else self.cross.remember(encoded, layout, positions)

    def run_with_mixer(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        memory: Memory | None,
        mix: Callable[[Tensor], tuple[Tensor, Any]],
    ) -> BlockOutput:
        """Run the block with `mix` as its mixer."""
        x, state = self.mix(x, mix)
        terms: Terms = {}
        if self.cross is not None and self.read is not None:
            cross = self.cross
            x, _ = self.read(x, lambda h: (cross(h, layout, memory), None))
        if self.feed_forward is not None and self.feed is not None:
            feed_forward = self.feed_forward
            x, terms = self.feed(x, lambda h: feed_forward(h, layout))
        return BlockOutput(x, state, terms)


class ParallelBlock(Block):
    """Mixer and feed-forward take the same input and their outputs are added (Wang and Komatsuzaki 2021, GPT-J;
    GPT-NeoX).
    """

    def run_with_mixer(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        memory: Memory | None,
        mix: Callable[[Tensor], tuple[Tensor, Any]],
    ) -> BlockOutput:
        mixed, state = self.mix(x, mix)
        if self.feed_forward is None or self.feed is None:
            return BlockOutput(mixed, state, {})
        y, terms = self.feed_forward(self.feed.before(x), layout)
        return BlockOutput(self.feed.join(mixed, y), state, terms)
