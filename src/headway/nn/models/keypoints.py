"""Keypoints of images: the expected position of each feature map, which keeps where small objects are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.patches import ConvolutionalStem, LearnedVectors
from headway.nn.parts.projection import Projection


class SpatialSoftmax(nn.Module):
    """Finn et al. 2016, section 4: the expected position of each of `points` feature maps, x and y from -1 to 1.

    Maps are multiplied by `sharpness`, the inverse of the softmax's temperature.
    """

    places: Tensor

    def __init__(self, channels: int, points: int, grid: tuple[int, int], sharpness: float = 1.0) -> None:
        super().__init__()
        self.maps, self.sharpness = Projection(channels, points), sharpness
        self.register_buffer("places", grid_coordinates(grid), persistent=False)

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B P 2"]:
        weights = (self.sharpness * self.maps(x)).flatten(1, 2).softmax(1)
        return weights.mT @ self.places


def grid_coordinates(grid: tuple[int, int]) -> Float[Tensor, "S 2"]:
    """x and y of each grid position, row by row."""
    rows, columns = (torch.linspace(-1.0, 1.0, size, dtype=torch.float64, device="cpu").float() for size in grid)
    return torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], 1)


@register("keypoints")
@dataclass(frozen=True)
class KeypointEmbedConfig(EmbedConfig):
    """One token per image, from the positions of `points` keypoints (Levine et al. 2016, section 5.2).

    Convolutions halve the image `halvings` times, with `stem_more` further convolutions after each halving; their last
    layer has `features` channels. A keypoint is the mean position in one feature map, so it is more exact than a pixel
    of the map. That is what a policy needs to reach a small object; patches know which patch it is in. In a softmax
    over flat maps, an object of a few pixels has little weight, so maps are multiplied by `sharpness`.
    """

    points: int = 32  # keypoints per image
    features: int = 32  # channels of the feature maps
    halvings: int = 2  # convolutions with stride 2
    stem_more: int = 0  # convolutions with stride 1 after each halving
    sharpness: float = 10.0  # factor on the maps before the softmax
    size: tuple[int, int] = (96, 96)  # height and width of the images

    def __post_init__(self) -> None:
        if min(self.points, self.features, self.halvings) < 1 or self.stem_more < 0:
            raise ConfigError(
                f"points={self.points}, features={self.features}, halvings={self.halvings} and "
                f"stem_more={self.stem_more}: the last must be at least 0, the others at least 1"
            )
        if not self.sharpness > 0:
            raise ConfigError(f"sharpness is {self.sharpness}; set a factor above 0")
        if self.features % 2 ** (self.halvings - 1):
            raise ConfigError(
                f"channels double {self.halvings - 1} times up to features={self.features}, which is not a multiple "
                f"of {2 ** (self.halvings - 1)}; choose one that is"
            )

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the feature maps."""
        stride = 2**self.halvings
        return -(-self.size[0] // stride), -(-self.size[1] // stride)

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"images of {self.size[0]} x {self.size[1]}"

    def summary(self) -> str:
        return f"{self.points} keypoints"

    def build(self, width: int, vocab_size: int, context: int | None) -> KeypointEmbed:
        return KeypointEmbed(self, width)


class KeypointEmbed(Embed):
    """Convolutions, a spatial softmax and a linear layer, plus a learned vector for the image's camera."""

    def __init__(self, config: KeypointEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvolutionalStem(3, config.features, config.halvings, config.stem_more)
        rows, columns = config.grid  # the stem's operations are counted per token, which here is an image
        self.stem.positions_per_patch = [rows * columns * count for count in self.stem.positions_per_patch]
        self.points = SpatialSoftmax(config.features, config.points, config.grid, config.sharpness)
        self.project = Projection(2 * config.points, width)
        self.camera = LearnedVectors(1, width)

    def default_layout(self, images: Float[Tensor, "B 3 H W"]) -> Layout:
        return Layout.full(images.shape[0], self.config.length, device=images.device)

    def forward(self, images: Float[Tensor, "B 3 H W"], layout: Layout) -> tuple[Float[Tensor, "B 1 D"], Layout]:
        maps = self.stem(images).unflatten(1, self.config.grid)
        return self.project(self.points(maps).flatten(1))[:, None] + self.camera.table, layout
