"""An agent's observations as one vector per step, and actor-critic agents, in which one network over the last states
predicts a policy and a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers import PointwiseConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.heads import HeadConfig
from headway.nn.models.patches import PatchEmbed, PatchEmbedConfig
from headway.nn.models.pooled import PooledHead, PooledHeadConfig
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.transformer import TransformerConfig
from headway.nn.parts.convolution import ImageConvolution
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName, MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import PositionsConfig
from headway.nn.parts.projection import Projection

_MIN_VARIANCE = 1e-8  # added to a variance
_FILTERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # outputs, taps, stride (Mnih et al. 2015)


@family
@dataclass(frozen=True)
class ObservationConfig:
    """An encoder of states; its module maps [B, K, *shape] to [B, K, D]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state."""
        raise NotImplementedError

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


@register("numbers")
@dataclass(frozen=True)
class StateVectorConfig(ObservationConfig):
    """A linear layer over a state vector."""

    size: int = 1  # size of a state; set from the data

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def build(self, width: int) -> nn.Module:
        if self.size < 1:
            raise ConfigError(f"model.embed.states.size is {self.size}; set it to the size of a state, at least 1")
        return Projection(self.size, width)


@register("patches")
@dataclass(frozen=True)
class PatchesConfig(ObservationConfig):
    """Images as patches: a feed-forward layer over each patch vector, then their mean."""

    patch: tuple[int, int] = (8, 8)  # height and width of a patch
    size: tuple[int, int] = (0, 0)  # height and width of the images; set from the data
    channels: int = 0  # image channels; set from the data

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def build(self, width: int) -> nn.Module:
        return Patches(self, width)


class Patches(nn.Module):
    """Patches with positions, as in a vision transformer (Dosovitskiy et al. 2021), a feed-forward layer over each, and
    the mean.
    """

    def __init__(self, config: PatchesConfig, width: int) -> None:
        super().__init__()
        front = PatchEmbedConfig(config.patch, config.size, config.channels, tokens=0, norm=LayerNormConfig())
        self.patches = PatchEmbed(front, width)
        self.up, self.down = Projection(width, 4 * width), Projection(4 * width, width)
        self.activation = ACTIVATIONS["gelu"]

    def forward(self, states: Float[Tensor, "B K C H W"]) -> Float[Tensor, "B K D"]:
        images = states.flatten(0, 1)
        x, _ = self.patches(images, self.patches.default_layout(images))
        return self.down(self.activation(self.up(x))).mean(1).unflatten(0, states.shape[:2])


@register("convolutions")
@dataclass(frozen=True)
class ConvolutionsConfig(ObservationConfig):
    """The three convolutions of the Atari DQN (Mnih et al. 2015), then a linear layer (Chen et al. 2021)."""

    size: tuple[int, int] = (84, 84)  # height and width of the images
    channels: int = 4  # image channels
    activation: ActivationName | None = "tanh"  # activation after the linear layer

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def build(self, width: int) -> nn.Module:
        return Convolutions(self, width)


class Convolutions(nn.Module):
    def __init__(self, config: ConvolutionsConfig, width: int) -> None:
        super().__init__()
        channels, sizes = config.channels, config.size
        filters: list[nn.Module] = []
        for outputs, taps, stride in _FILTERS:
            if min(sizes) < taps:
                raise ConfigError(f"images of {config.size[0]} x {config.size[1]} are too small; use 36 x 36 or more")
            filters.append(ImageConvolution(channels, outputs, taps, stride, padded=False))
            channels, sizes = outputs, tuple((size - taps) // stride + 1 for size in sizes)
        self.filters = nn.ModuleList(filters)
        self.project = Projection(channels * math.prod(sizes), width)
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()

    def forward(self, states: Float[Tensor, "B K C H W"]) -> Float[Tensor, "B K D"]:
        x = states.flatten(0, 1).movedim(1, -1)
        for convolution in self.filters:
            x = convolution(x).relu()
        return self.activation(self.project(x.flatten(1))).unflatten(0, states.shape[:2])


class RunningNorm(nn.Module):
    """Standardise by a running mean and variance, and clip to `reach`.

    Only `update` changes the mean and variance; they are buffers, saved with the weights.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, reach: float = 10.0) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
        scaled = (x - self.mean) * (self.variance + _MIN_VARIANCE).rsqrt()
        return scaled.clamp(-self.reach, self.reach)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "N S"]) -> None:
        """Update the statistics with N samples (Chan, Golub and LeVeque 1979, equation 2.1)."""
        old_count, new_count = self.count, float(len(x))
        total = old_count + new_count
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        shift = mean - self.mean
        squares = old_count * self.variance + new_count * variance + shift.square() * (old_count * new_count / total)
        self.mean += shift * (new_count / total)
        self.variance.copy_(squares / total)
        self.count += new_count


@register("states")
@dataclass(frozen=True)
class StatesEmbedConfig(EmbedConfig):
    """One token per observed state; `normalise` standardises states by running statistics of all states so far."""

    states: StateVectorConfig = StateVectorConfig()  # encoder of a state
    normalise: bool = True
    positions: PositionsConfig | None = None  # position vectors, added to the states

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"states of size {self.states.size}, the last {context or 1}"

    def summary(self) -> str:
        return "states, normalised" if self.normalise else "states"

    def build(self, width: int, vocab_size: int, context: int | None) -> StatesEmbed:
        return StatesEmbed(self, width, context)


class StatesEmbed(Embed):
    def __init__(self, config: StatesEmbedConfig, width: int, context: int | None) -> None:
        super().__init__()
        self.config = config
        self.running = RunningNorm(config.states.size) if config.normalise else nn.Identity()
        self.states = config.states.build(width)
        self.positions = config.positions.build(width, context) if config.positions else None

    def forward(self, states: Float[Tensor, "B T S"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        x = self.states(self.running(states))
        if self.positions is not None:
            x = x + self.positions(layout, x)
        return x, layout


@register("gaussian")
@dataclass(frozen=True)
class GaussianHeadConfig(HeadConfig):
    """A normal distribution over `outputs` numbers: means, and learned log standard deviations shared by all states."""

    outputs: int = 1  # size of an action
    std: float = 1.0  # initial standard deviation

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ConfigError(f"std is {self.std}; set a standard deviation above 0")

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> GaussianHead:
        return GaussianHead(self, width)


class GaussianHead(PooledHead):
    def __init__(self, config: GaussianHeadConfig, width: int) -> None:
        super().__init__(_pooled(config.outputs), width)
        self.log_std = nn.Parameter(torch.full((config.outputs,), math.log(config.std)))

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B E"]:
        """Means, then log standard deviations: E = 2 outputs."""
        mean = super().forward(x, layout)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def policy_head(actions: int, discrete: bool, std: float = 1.0) -> HeadConfig:
    """From the last state, logits of `actions` choices if `discrete`, otherwise a normal distribution of that size."""
    return _pooled(actions) if discrete else GaussianHeadConfig(actions, std)


def _pooled(outputs: int) -> PooledHeadConfig:
    """A head over the last token with one hidden layer."""
    return PooledHeadConfig(outputs, "last", dense=True, activation="tanh")


def actor_critic(
    states: int = 1, actions: int = 2, *, discrete: bool = True, width: int = 64, depth: int = 1
) -> TransformerConfig:
    """A policy and a value head on a shared stack. Heads start at zero: all choices equally probable, all values 0."""
    block = BlockConfig(PointwiseConfig(), None, MLPConfig(ratio=2.0, activation="relu"), LayerNormConfig())
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), depth), LayerNormConfig()),
        embed=StatesEmbedConfig(StateVectorConfig(states)),
        heads={"policy": policy_head(actions, discrete), "value": _pooled(1)},
        tie="none",
        init=InitConfig(matrices="fan_in", residual="same", head="zero"),
    )
