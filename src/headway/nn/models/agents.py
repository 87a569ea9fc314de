"""Agents that see the state of now, or the last few: a policy and a value of each state by one network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers import PointwiseConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.embeds import EmbedConfig
from headway.nn.models.heads import HeadConfig
from headway.nn.models.observations import NumbersConfig
from headway.nn.models.pooled import PooledHead, PooledHeadConfig
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.transformer import TransformerConfig
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig, RunningNorm
from headway.nn.parts.positions import PositionsConfig


@register("states")
@dataclass(frozen=True)
class StatesEmbedConfig(EmbedConfig):
    """A token for each state that is seen; `normalise` brings its numbers to one scale by all states seen so far."""

    states: NumbersConfig = NumbersConfig()  # how many numbers a state has
    normalise: bool = True
    positions: PositionsConfig | None = None  # added to the states

    def reads(self, symbols: int, context: int | None) -> str:
        return f"states of {self.states.size} numbers, the last {context or 1}"

    def summary(self) -> str:
        return "states, normalised" if self.normalise else "states"

    def build(self, width: int, symbols: int, context: int | None) -> StatesEmbed:
        return StatesEmbed(self, width, context)


class StatesEmbed(nn.Module):
    def __init__(self, config: StatesEmbedConfig, width: int, context: int | None) -> None:
        super().__init__()
        self.config = config
        self.table = None  # there is no vocabulary to share
        self.running = RunningNorm(config.states.size) if config.normalise else nn.Identity()
        self.states = config.states.build(width)
        self.positions = config.positions.build(width, context) if config.positions else None

    def whole(self, states: Float[Tensor, "B T S"]) -> Layout:
        """Each row is one document."""
        return Layout.full(*states.shape[:2], device=states.device)

    def forward(self, states: Float[Tensor, "B T S"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        x = self.states(self.running(states))
        if self.positions is not None:
            x = x + self.positions(layout, x)
        return x, layout


@register("gaussian")
@dataclass(frozen=True)
class GaussianHeadConfig(HeadConfig):
    """Means of `outputs` numbers that are drawn, and the logarithms of their standard deviations, which begin at that
    of `std` and are the same for all states.
    """

    outputs: int = 1  # actions to choose from, or numbers of one
    std: float = 1.0  # of numbers, at the start

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ConfigError(f"std is {self.std}; give a standard deviation above 0")

    def build(self, width: int, symbols: int, table: nn.Parameter | None) -> GaussianHead:
        return GaussianHead(self, width)


class GaussianHead(PooledHead):
    def __init__(self, config: GaussianHeadConfig, width: int) -> None:
        super().__init__(_pooled(config.outputs), width)
        self.log_std = nn.Parameter(torch.full((config.outputs,), math.log(config.std)))

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B E"]:
        """Means and logarithms of standard deviations, one after the other: E = 2 outputs."""
        mean = super().forward(x, layout)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def policy_head(actions: int, discrete: bool, std: float = 1.0) -> HeadConfig:
    """Logits of so many choices, or a normal distribution of so many numbers, from the last state."""
    return _pooled(actions) if discrete else GaussianHeadConfig(actions, std)


def _pooled(outputs: int) -> PooledHeadConfig:
    """From the last token, by one hidden layer of the head's own."""
    return PooledHeadConfig(outputs, "last", dense=True, activation="tanh")


def actor_critic(
    states: int = 1, actions: int = 2, *, discrete: bool = True, width: int = 64, depth: int = 1
) -> TransformerConfig:
    """A policy and a value over a common trunk. Heads start at zero: all choices are as probable, all values 0."""
    block = BlockConfig(PointwiseConfig(), None, MLPConfig(ratio=2.0, activation="relu"), LayerNormConfig())
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), LayerNormConfig()),
        embed=StatesEmbedConfig(NumbersConfig(states)),
        heads={"policy": policy_head(actions, discrete), "value": _pooled(1)},
        tie="none",
        init=InitConfig(matrices="fan_in", residual="same", head="zero"),
    )
