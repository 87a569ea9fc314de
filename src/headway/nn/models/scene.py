"""From what a robot sees at a step to tokens, as LeRobot's ACT has it: every place of a residual network is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import EmbedConfig
from headway.nn.models.resnet import STRIDE, ResNet, ResNetDepth
from headway.nn.models.robot import Observations
from headway.nn.parts.positions import GridsConfig
from headway.nn.parts.projection import Projection

_LARGEST = 1 << 14  # pixels of a side


@register("scene")
@dataclass(frozen=True)
class SceneEmbedConfig(EmbedConfig):
    """A token of a latent of `latent` numbers, one of the robot's state (its first `robot` numbers), one of the
    `surroundings` numbers after them, and one for each place of what a residual network of `depth` layers, the same
    for all, says of the pictures of each camera, whose sizes (height, width) are in `cameras`. 0 numbers are no token.

    They have no positions: `places` are those that the stack's attention may add.
    """

    robot: int = 0  # numbers of the robot's state
    surroundings: int = 0  # numbers of what is around it
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's pictures
    latent: int = 0  # numbers of the latent
    depth: ResNetDepth = 18  # layers of the residual network
    dropout: float = 0.0  # of the posterior's tokens

    def __post_init__(self) -> None:
        if min(self.robot, self.surroundings, self.latent) < 0:
            raise ConfigError(f"{self.robot}, {self.surroundings} and {self.latent} numbers; give nothing below 0")
        for size in self.cameras:
            if not 1 <= min(size) <= max(size) <= _LARGEST:
                raise ConfigError(f"pictures of {size[0]} x {size[1]} pixels; give 1 to {_LARGEST} each way")

    @property
    def states(self) -> int:
        """The numbers of a state."""
        return self.robot + self.surroundings

    @property
    def front(self) -> int:
        """The tokens before those of pictures."""
        return sum(map(bool, (self.latent, self.robot, self.surroundings)))

    @property
    def places(self) -> GridsConfig:
        """Learned positions of the first tokens, and sinusoids of rows and columns for pictures."""
        grids = tuple((-(-high // STRIDE), -(-wide // STRIDE)) for high, wide in self.cameras)
        return GridsConfig(self.front, grids)

    @property
    def length(self) -> int:
        return self.places.length

    def fitted(self, states: int, cameras: tuple[tuple[int, int], ...]) -> SceneEmbedConfig:
        """Itself. ConfigError for states and cameras of other sizes."""
        own = tuple(map(tuple, self.cameras))
        if (states, tuple(map(tuple, cameras))) != (self.states, own):
            raise ConfigError(
                f"this model reads states of {self.states} numbers and pictures of {own}, and the demonstrations have "
                f"{states} and {cameras}; give demonstrations of its robot"
            )
        return self

    def reads(self, symbols: int, context: int | None) -> str:
        sizes = ", ".join(f"{high} x {wide}" for high, wide in self.cameras)
        seen = f", {len(self.cameras)} cameras of {sizes}" if self.cameras else ""
        return f"states of {self.states} numbers{seen}, {self.length} tokens"

    def summary(self) -> str:
        return f"scene, pictures by ResNet-{self.depth}" if self.cameras else "scene"

    def build(self, width: int, symbols: int, context: int | None) -> SceneEmbed:
        if not self.front and not self.cameras:
            raise ConfigError("a robot of no state and no cameras sees nothing; give it one of them")
        return SceneEmbed(self, width)


class SceneEmbed(nn.Module):
    """Zhao et al. 2023, figure 4, with the convolutional features of its appendix C."""

    def __init__(self, config: SceneEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.table = None  # there is no vocabulary to share
        sizes = {"latent": config.latent, "robot": config.robot, "surroundings": config.surroundings}
        self.numbers = nn.ModuleDict({name: Projection(size, width) for name, size in sizes.items() if size})
        self.eye = ResNet(config.depth) if config.cameras else None
        self.project = Projection(self.eye.width, width) if self.eye is not None else None

    def whole(self, seen: Observations) -> Layout:
        """Each row is one document. UserError for what this model does not read, or misses."""
        size = 0 if seen.states is None else seen.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states of {size} numbers for a model that reads {self.config.states}; give the robot's")
        found = tuple(tuple(image.shape[2:]) for image in seen.images)
        if found != tuple(map(tuple, self.config.cameras)):
            raise UserError(f"pictures of {found} for a model that reads {self.config.cameras}; give all of its")
        return Layout.full(seen.rows, self.config.length, device=seen.device)

    def forward(self, seen: Observations, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        given = dict(zip(("robot", "surroundings"), self._states(seen)), latent=self._latent(seen))
        parts = [project(given[name])[:, None] for name, project in self.numbers.items()]
        return torch.cat([*parts, *self._looked(seen)], 1), layout

    def _states(self, seen: Observations) -> tuple[Tensor, ...]:
        sizes = (self.config.robot, self.config.surroundings)
        return () if seen.states is None else seen.states.split(sizes, -1)

    def _latent(self, seen: Observations) -> Float[Tensor, "B Z"]:
        """The one that is given, or 0."""
        if seen.latent is not None:
            return seen.latent
        return torch.zeros(seen.rows, self.config.latent, device=seen.device, dtype=seen.dtype)

    def _looked(self, seen: Observations) -> list[Float[Tensor, "B P D"]]:
        if self.eye is None or self.project is None:
            return []
        return [self.project(self.eye(image).flatten(1, 2)) for image in seen.images]
