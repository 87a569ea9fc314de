"""From what a robot sees at a step to one vector: its numbers, and where in each picture what matters is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError, UserError
from headway.nn.models.resnet import STRIDE, ResNet, ResNetDepth, ResNetNorm
from headway.nn.models.robot import Observations
from headway.nn.parts.projection import Projection

_LARGEST = 1 << 14  # pixels of a side


@dataclass(frozen=True)
class KeypointsConfig:
    """The robot's state (`robot` numbers), then `points` places (x and y) in the picture of each camera, whose sizes
    (height, width) are in `cameras` and equal, and the `surroundings` numbers that follow the robot's in a state.

    A picture is brought to the size `resized`, its middle of the size `crop` is taken (None: as it is), and a residual
    network of `depth` layers reads it, the same for all cameras or, `apart`, one for each.
    """

    robot: int = 1  # numbers of the robot's state
    surroundings: int = 0  # numbers of what is around it
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's pictures
    resized: tuple[int, int] | None = None  # height and width to which pictures are brought; none: as they are
    crop: tuple[int, int] | None = None  # height and width of their middle that is read; none: all
    points: int = 32  # places that are found in a picture
    depth: ResNetDepth = 18  # layers of the residual network
    norm: ResNetNorm = "group"  # its normalisation
    apart: bool = False  # whether each camera has a network of its own

    def __post_init__(self) -> None:
        if min(self.robot, self.surroundings) < 0 or self.points < 1:
            raise ConfigError(
                f"{self.robot} and {self.surroundings} numbers and {self.points} points; give nothing below 0, and a "
                "point or more"
            )
        sizes = {tuple(size) for size in self.cameras}
        if len(sizes) > 1:
            raise ConfigError(f"pictures of {len(sizes)} sizes; this model reads those of one, so give one to all")
        for size in (*sizes, self.resized, self.crop):
            if size is not None and not 1 <= min(size) <= max(size) <= _LARGEST:
                raise ConfigError(f"pictures of {size[0]} x {size[1]} pixels; give 1 to {_LARGEST} each way")
        whole = self.resized or next(iter(sizes), None)
        if whole and self.crop and (self.crop[0] > whole[0] or self.crop[1] > whole[1]):
            raise ConfigError(
                f"{self.crop[0]} x {self.crop[1]} pixels cannot be cropped from {whole[0]} x {whole[1]}; crop at most "
                "so many"
            )

    @property
    def states(self) -> int:
        """The numbers of a state."""
        return self.robot + self.surroundings

    @property
    def width(self) -> int:
        """The numbers of the vector."""
        return self.states + 2 * self.points * len(self.cameras)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of what the residual network says of a picture."""
        high, wide = self.crop or self.resized or self.cameras[0]
        return -(-high // STRIDE), -(-wide // STRIDE)

    def fitted(self, states: int, cameras: tuple[tuple[int, int], ...]) -> KeypointsConfig:
        """The same for states of so many numbers and cameras of these sizes. ConfigError for cameras that differ."""
        surroundings = self.surroundings if states == self.states else 0
        return replace(self, robot=states - surroundings, surroundings=surroundings, cameras=cameras)

    def reads(self) -> str:
        sizes = ", ".join(f"{high} x {wide}" for high, wide in self.cameras)
        if not sizes:
            return f"states of {self.states} numbers"
        eyes = f"{self.points} points of each by ResNet-{self.depth}" + (", each its own" if self.apart else "")
        return f"states of {self.states} numbers, {len(self.cameras)} cameras of {sizes}, {eyes}"


class Glimpses(nn.Module):
    """Chi et al. 2023, section 3.2: a vector for each of N steps, all steps side by side."""

    def __init__(self, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        count = (len(config.cameras) if config.apart else 1) if config.cameras else 0
        self.eyes = nn.ModuleList(PointingEye(config) for _ in range(count))

    def forward(self, seen: Observations) -> Float[Tensor, "B N E"]:
        """UserError for what this model does not read, or misses."""
        self._check(seen)
        assert seen.states is not None  # the check says so
        states = seen.states.reshape(seen.rows, -1, self.config.states)  # [B, S] is a single step
        robot, surroundings = states.split((self.config.robot, self.config.surroundings), -1)
        eyes = self.eyes if self.config.apart else list(self.eyes) * len(seen.images)
        shape = states.shape[:2]
        looked = [
            eye(image.reshape(-1, *image.shape[-3:])).unflatten(0, shape) for eye, image in zip(eyes, seen.images)
        ]
        return torch.cat([robot, *looked, surroundings], -1)

    def _check(self, seen: Observations) -> None:
        size = 0 if seen.states is None else seen.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states of {size} numbers for a model that reads {self.config.states}; give the robot's")
        found = tuple(tuple(image.shape[-2:]) for image in seen.images)
        if found != tuple(map(tuple, self.config.cameras)):
            raise UserError(f"pictures of {found} for a model that reads {self.config.cameras}; give all of its")


class PointingEye(nn.Module):
    """The middle of a picture by a residual network, and the places of most of what it finds."""

    def __init__(self, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        self.net = ResNet(config.depth, config.norm)
        self.points = SpatialSoftmax(self.net.width, config.points, config.grid)
        self.out = Projection(2 * config.points, 2 * config.points)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        if self.config.resized is not None:
            images = F.interpolate(images, size=self.config.resized, mode="bilinear", antialias=True)
        return self.out(self.points(self.net(self._middle(images))).flatten(1)).relu()

    def _middle(self, images: Tensor) -> Tensor:
        high, wide = self.config.crop or images.shape[2:]
        top, left = (round((whole - part) / 2) for whole, part in zip(images.shape[2:], (high, wide)))
        return images[:, :, top : top + high, left : left + wide]


class SpatialSoftmax(nn.Module):
    """Finn et al. 2016, section 4: where on a grid each of `points` maps is strongest on average, as x and y of -1 to
    1.
    """

    places: Tensor

    def __init__(self, channels: int, points: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.maps = Projection(channels, points)
        self.register_buffer("places", places(grid), persistent=False)

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B P 2"]:
        weights = self.maps(x).flatten(1, 2).softmax(1)
        return weights.mT @ self.places


def places(grid: tuple[int, int]) -> Float[Tensor, "S 2"]:
    """x and y of each place of a grid, row after row."""
    rows, columns = (torch.linspace(-1.0, 1.0, size, dtype=torch.float64).float() for size in grid)
    return torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], 1)
