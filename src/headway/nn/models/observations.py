"""From what an agent observes at a step to one vector: numbers, or an image by patches or by convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError
from headway.nn.models.patches import PatchEmbed, PatchEmbedConfig
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.projection import ImageConvolution, Projection

_FILTERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # outputs, taps, stride (Mnih et al. 2015)


@family
@dataclass(frozen=True)
class ObservationConfig:
    """How a state becomes a vector; its module maps [B, K, *shape] to [B, K, D]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state."""
        raise NotImplementedError

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


@register("numbers")
@dataclass(frozen=True)
class NumbersConfig(ObservationConfig):
    """`size` numbers, by one linear map."""

    size: int = 1  # numbers of a state; the data decide

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def build(self, width: int) -> nn.Module:
        if self.size < 1:
            raise ConfigError(f"states of {self.size} numbers say nothing; set model.embed.states.size to how many")
        return Projection(self.size, width)


@register("patches")
@dataclass(frozen=True)
class PatchesConfig(ObservationConfig):
    """Images of `channels` and `size` (height, width): a vector for each patch, mixed in itself, then their mean."""

    patch: tuple[int, int] = (8, 8)  # height and width of a patch
    size: tuple[int, int] = (0, 0)  # height and width of the images; the data decide
    channels: int = 0  # of the images; the data decide

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def build(self, width: int) -> nn.Module:
        return Patches(self, width)


class Patches(nn.Module):
    """Patches with positions, as a vision transformer has them (Dosovitskiy et al. 2021), and the mean of what a
    feed-forward of one hidden layer makes of each.
    """

    def __init__(self, config: PatchesConfig, width: int) -> None:
        super().__init__()
        front = PatchEmbedConfig(config.patch, config.size, config.channels, tokens=0, norm=LayerNormConfig())
        self.patches = PatchEmbed(front, width)
        self.up, self.down = Projection(width, 4 * width), Projection(4 * width, width)
        self.activation = ACTIVATIONS["gelu"]

    def forward(self, states: Float[Tensor, "B K C H W"]) -> Float[Tensor, "B K D"]:
        images = states.flatten(0, 1)
        x, _ = self.patches(images, self.patches.whole(images))
        return self.down(self.activation(self.up(x))).mean(1).unflatten(0, states.shape[:2])


@register("convolutions")
@dataclass(frozen=True)
class ConvolutionsConfig(ObservationConfig):
    """The three convolutions that play Atari (Mnih et al. 2015), a linear map and `activation` (Chen et al. 2021)."""

    size: tuple[int, int] = (84, 84)  # height and width of the images
    channels: int = 4  # of the images
    activation: ActivationName | None = "tanh"  # after the linear map

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def build(self, width: int) -> nn.Module:
        return Convolutions(self, width)


class Convolutions(nn.Module):
    def __init__(self, config: ConvolutionsConfig, width: int) -> None:
        super().__init__()
        channels, sides = config.channels, config.size
        filters: list[nn.Module] = []
        for outputs, taps, stride in _FILTERS:
            if min(sides) < taps:
                raise ConfigError(f"images of {config.size[0]} x {config.size[1]} are too small; give 36 x 36 or more")
            filters.append(ImageConvolution(channels, outputs, taps, stride, padded=False))
            channels, sides = outputs, tuple((side - taps) // stride + 1 for side in sides)
        self.filters = nn.ModuleList(filters)
        self.project = Projection(channels * math.prod(sides), width)
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()

    def forward(self, states: Float[Tensor, "B K C H W"]) -> Float[Tensor, "B K D"]:
        x = states.flatten(0, 1).movedim(1, -1)
        for convolution in self.filters:
            x = convolution(x).relu()
        return self.activation(self.project(x.flatten(1))).unflatten(0, states.shape[:2])
