"""A diffusion policy: a U-Net over time denoises chunks of actions, conditioned on observations at every scale.

The observation of a step is one vector: the state, and keypoints in each camera image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.nn.kernels import pointwise
from headway.nn.models.chunks import ChunkNoise, Chunks, DiffusionConfig, NoisyChunks
from headway.nn.models.heads import Loss
from headway.nn.models.keypoints import SpatialSoftmax
from headway.nn.models.resnet import STRIDE, GroupNorm, ResNet, ResNetDepth, ResNetNorm
from headway.nn.models.robot import Observations
from headway.nn.models.transformer import ModelConfig
from headway.nn.parts.convolution import Convolution, DoublingConvolution
from headway.nn.parts.feedforward import Terms
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.projection import Projection

_MAX_SIDE = 1 << 14  # maximum height or width in pixels


@dataclass(frozen=True)
class KeypointsConfig:
    """The robot's state, then keypoints (x and y) in the image of each camera, then the environment's state, which
    follows the robot's in a state vector.

    An image is resized, centre-cropped and encoded by a residual network, one for all cameras or one per camera.
    """

    robot: int = 1  # size of the robot's own state
    surroundings: int = 0  # size of the environment's state
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's images, all equal
    resized: tuple[int, int] | None = None  # height and width to resize images to; none: no resizing
    crop: tuple[int, int] | None = None  # height and width of the centre crop; none: no crop
    points: int = 32  # keypoints per image
    depth: ResNetDepth = 18  # layers of the residual network
    norm: ResNetNorm = "group"  # normalisation of the residual network
    apart: bool = False  # whether each camera has its own network

    def __post_init__(self) -> None:
        if min(self.robot, self.surroundings) < 0 or self.points < 1:
            raise ConfigError(
                f"robot={self.robot}, surroundings={self.surroundings} and points={self.points}: sizes must be at "
                "least 0, and points at least 1"
            )
        sizes = {tuple(size) for size in self.cameras}
        if len(sizes) > 1:
            raise ConfigError(f"the cameras have {len(sizes)} different image sizes; use the same size for all")
        for size in (*sizes, self.resized, self.crop):
            if size is not None and not 1 <= min(size) <= max(size) <= _MAX_SIDE:
                raise ConfigError(
                    f"images of {size[0]} x {size[1]} pixels are not supported; set both sides from 1 to {_MAX_SIDE}"
                )
        image_size = self.resized or next(iter(sizes), None)
        if image_size and self.crop and (self.crop[0] > image_size[0] or self.crop[1] > image_size[1]):
            raise ConfigError(
                f"a crop of {self.crop[0]} x {self.crop[1]} pixels does not fit in {image_size[0]} x {image_size[1]}; "
                "set a "
                "smaller crop"
            )

    @property
    def states(self) -> int:
        """Size of a state."""
        return self.robot + self.surroundings

    @property
    def width(self) -> int:
        """Size of the observation vector."""
        return self.states + 2 * self.points * len(self.cameras)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the residual network's output."""
        high, wide = self.crop or self.resized or self.cameras[0]
        return -(-high // STRIDE), -(-wide // STRIDE)

    def with_inputs(self, states: int, cameras: tuple[tuple[int, int], ...]) -> KeypointsConfig:
        """A copy for these state and camera sizes. Raises ConfigError for cameras of different sizes."""
        surroundings = self.surroundings if states == self.states else 0
        return replace(self, robot=states - surroundings, surroundings=surroundings, cameras=cameras)

    def describe_inputs(self) -> str:
        sizes = ", ".join(f"{high} x {wide}" for high, wide in self.cameras)
        if not sizes:
            return f"states of size {self.states}"
        eyes = f"{self.points} keypoints each by ResNet-{self.depth}" + (", one per camera" if self.apart else "")
        return f"states of size {self.states}, {len(self.cameras)} cameras of {sizes}, {eyes}"


class ObservationEncoder(nn.Module):
    """Chi et al. 2023, section 3.2: one observation vector for each of N steps."""

    def __init__(self, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        count = (len(config.cameras) if config.apart else 1) if config.cameras else 0
        self.eyes = nn.ModuleList(KeypointEncoder(config) for _ in range(count))

    def forward(self, observations: Observations) -> Float[Tensor, "B N E"]:
        """Raises UserError for missing or unsupported inputs."""
        size = 0 if observations.states is None else observations.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states have size {size}, not this model's {self.config.states}; pass the robot's states")
        sizes = tuple(tuple(image.shape[-2:]) for image in observations.images)
        if sizes != tuple(map(tuple, self.config.cameras)):
            raise UserError(
                f"images are {sizes}, but the model takes {self.config.cameras}; pass images from all its cameras"
            )
        assert observations.states is not None  # checked above
        states = observations.states.reshape(observations.rows, -1, self.config.states)  # [B, S] is a single step
        robot, surroundings = states.split((self.config.robot, self.config.surroundings), -1)
        eyes = self.eyes if self.config.apart else list(self.eyes) * len(observations.images)
        shape = states.shape[:2]
        keypoints = [
            eye(image.reshape(-1, *image.shape[-3:])).unflatten(0, shape)
            for eye, image in zip(eyes, observations.images)
        ]
        return torch.cat([robot, *keypoints, surroundings], -1)


class KeypointEncoder(nn.Module):
    """Keypoints of a centre crop, by a residual network and a spatial softmax."""

    def __init__(self, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        self.net = ResNet(config.depth, config.norm)
        self.points = SpatialSoftmax(self.net.width, config.points, config.grid)
        self.out = Projection(2 * config.points, 2 * config.points)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        if self.config.resized is not None:
            images = F.interpolate(images, size=self.config.resized, mode="bilinear", antialias=True)
        height, width = self.config.crop or images.shape[2:]
        top, left = (round((length - part) / 2) for length, part in zip(images.shape[2:], (height, width)))
        return self.out(self.points(self.net(images[:, :, top : top + height, left : left + width])).flatten(1)).relu()


LAST_GROUPS = 8  # groups of the norm before the last layer
_MAX_PERIOD = 10000.0  # maximum period of the sinusoids of the diffusion step


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net over time, each level at half the resolution of the one before. The conditioning shifts the channels of a
    layer and optionally scales them.
    """

    widths: tuple[int, ...] = (512, 1024, 2048)  # channels of each level
    taps: int = 5  # kernel size of convolutions, odd
    groups: int = 8  # groups of the group norms
    step: int = 128  # embedding size of the diffusion step
    scaled: bool = True  # whether the conditioning also scales channels

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.groups < 1:
            raise ConfigError(f"widths={list(self.widths)} and groups={self.groups}: all must be at least 1")
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(f"{width} channels are not divisible into {self.groups} groups; set a multiple")
        if self.widths[0] % LAST_GROUPS:
            raise ConfigError(f"the first level has {self.widths[0]} channels; set a multiple of {LAST_GROUPS}")
        if self.taps < 1 or self.taps % 2 == 0:
            raise ConfigError(f"taps is {self.taps}; set an odd kernel size")
        if self.step < 4 or self.step % 2:
            raise ConfigError(f"step is {self.step}; set an even embedding size of at least 4")

    @property
    def multiple(self) -> int:
        """The horizon must be a multiple of this, so that time can be halved at every level."""
        return 2 ** (len(self.widths) - 1)


class UNet(nn.Module):
    """Janner et al. 2022, appendix C, with the conditioning of Chi et al. 2023, section 3.1: each level down has a skip
    connection to the level up, and the diffusion step and the observations modulate every layer.
    """

    def __init__(self, config: UNetConfig, channels: int, conditions: int) -> None:
        """`channels` is the input and output size per time step, `conditions` the size of the observations."""
        super().__init__()
        self.config = config
        widths, condition_size = config.widths, config.step + conditions
        self.up, self.down = Projection(config.step, 4 * config.step), Projection(4 * config.step, config.step)

        def level(before: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(
                [ModulatedLayer(config, in_channels, width, condition_size) for in_channels in (before, width)]
            )

        self.descent = nn.ModuleList(level(before, width) for before, width in zip((channels, *widths), widths))
        self.halving = nn.ModuleList(Convolution(width, width, 3, 2) for width in widths[:-1])
        self.middle = level(widths[-1], widths[-1])
        pairs = list(pairwise(widths))[::-1]
        self.ascent = nn.ModuleList(level(2 * width, narrower) for narrower, width in pairs)
        self.doubling = nn.ModuleList(DoublingConvolution(narrower, narrower) for narrower, _ in pairs)
        self.last = Convolution(widths[0], widths[0], config.taps)
        self.last_norm = GroupNorm(LAST_GROUPS, widths[0])
        self.out = Projection(widths[0], channels)

    def forward(
        self, x: Float[Tensor, "B T A"], steps: Int[Tensor, "B"], observations: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B T A"]:
        half = self.config.step // 2
        slower = -math.log(_MAX_PERIOD) / (half - 1)
        angles = steps[:, None] * torch.exp(slower * torch.arange(half, device=x.device))
        step = torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype)
        condition = _mish(torch.cat([self.down(_mish(self.up(step))), observations], -1))[:, None]
        skips = []
        for number, level in enumerate(self.descent):
            x = self.halving[number - 1](x) if number else x
            x = _apply_level(level, x, condition)
            skips.append(x)
        x = _apply_level(self.middle, x, condition)
        for level, doubling in zip(self.ascent, self.doubling):
            x = doubling(_apply_level(level, torch.cat([x, skips.pop()], -1), condition))
        return self.out(_mish(self.last_norm(self.last(x))))


class ModulatedLayer(nn.Module):
    """Two convolutions with a skip connection, a linear layer if the width changes; the output of the first is
    modulated (FiLM, Perez et al. 2018, equation 2).
    """

    def __init__(self, config: UNetConfig, channels: int, width: int, condition_size: int) -> None:
        super().__init__()
        self.scaled = config.scaled
        self.first, self.second = Convolution(channels, width, config.taps), Convolution(width, width, config.taps)
        self.first_norm, self.second_norm = GroupNorm(config.groups, width), GroupNorm(config.groups, width)
        self.modulate = Projection(condition_size, 2 * width if config.scaled else width)
        self.around = Projection(channels, width) if channels != width else nn.Identity()

    def forward(self, x: Float[Tensor, "B T C"], condition: Float[Tensor, "B 1 E"]) -> Float[Tensor, "B T D"]:
        y, shift = _mish(self.first_norm(self.first(x))), self.modulate(condition)
        if self.scaled:
            scale, shift = shift.chunk(2, -1)
            y = scale * y
        y = y + shift
        return _mish(self.second_norm(self.second(y))) + self.around(x)


def _apply_level(layers: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    for layer in cast(Sequence[nn.Module], layers):
        x = layer(x, condition)
    return x


def _mish(x: Tensor) -> Tensor:
    """Misra 2020."""
    return pointwise(F.mish, x)


_HEAD = DiffusionConfig(sampled=100, predicts="noise", clip=1.0, sampler="ddpm", spacing="leading")  # as in the paper


@register("unet-policy")
@dataclass(frozen=True)
class UNetPolicyConfig(ModelConfig):
    """A U-Net that denoises `horizon` actions, conditioned on the observations of the last `history` steps. The first
    action belongs to the oldest of these steps, so `chunk` actions remain from the current step on.
    """

    horizon: int = 16  # actions predicted at once, including past ones
    history: int = 2  # observed steps
    actions: int = 1  # size of an action; set from the data
    observation: KeypointsConfig = KeypointsConfig()  # encoder of an observation
    net: UNetConfig = UNetConfig()  # denoising network
    head: DiffusionConfig = _HEAD  # method for learning chunks
    init: InitConfig = InitConfig(matrices="fan_in")  # initialisation of the weights

    def __post_init__(self) -> None:
        if min(self.actions, self.history) < 1 or self.horizon < self.history:
            raise ConfigError(
                f"model.horizon={self.horizon}, model.actions={self.actions} and model.history={self.history}: "
                "model.actions and model.history must be at least 1, and model.horizon at least model.history"
            )
        if self.horizon % self.net.multiple:
            raise ConfigError(
                f"model.horizon is {self.horizon}, but a U-Net of {len(self.net.widths)} levels halves it repeatedly; "
                f"set a multiple of {self.net.multiple}"
            )

    @property
    def chunk(self) -> int:
        """Number of actions from the current step on."""
        return self.horizon - self.history + 1

    @property
    def words(self) -> int:
        """Vocabulary of task names: none."""
        return 0

    @property
    def context(self) -> None:
        """No limit: observations have a fixed length."""
        return

    def build(self, seed: int | None = 0) -> UNetPolicy:
        return UNetPolicy(self, seed)


class UNetPolicy(nn.Module):
    """Chi et al. 2023, section 3.1."""

    def __init__(self, config: UNetPolicyConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.glimpses = ObservationEncoder(config.observation)
        self.net = UNet(config.net, config.actions, config.history * config.observation.width)
        if seed is not None:
            initialise(self, config.init, 1, seed)

    def forward(self, observations: Observations, sample: ChunkNoise) -> Float[Tensor, "B C A"]:
        """Predict the chunks from the current step on, in normalised units, from the noise in `sample`."""
        return self.config.head.predict(self, observations, sample)[:, self.config.history - 1 :]

    def losses(self, observations: Observations, chunks: Chunks, sample: ChunkNoise) -> dict[str, Loss]:
        """Losses on demonstrated chunks of the whole horizon."""
        return self.config.head.losses(self, observations, chunks, sample)

    def sample_noise(self, random: np.random.Generator, rows: int) -> ChunkNoise:
        """Sample the noise for `rows` chunks."""
        return self.config.head.sample_noise(random, rows, self.config.horizon, self.config.actions)

    def encode(self, observations: Observations) -> tuple[Float[Tensor, "B E"], Terms]:
        """The conditioning vector of observations, and no auxiliary losses."""
        return self.glimpses(observations).flatten(1), {}

    def decode_chunk(self, encoded: Float[Tensor, "B E"], noisy: NoisyChunks | None) -> Float[Tensor, "B C A"]:
        """The U-Net's output for each action of the horizon."""
        assert noisy is not None  # a diffusion head always passes it
        return self.net(noisy.actions, noisy.steps, encoded)

    def infer(self, observations: Observations, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Not used: this model has no latent."""
        raise NotImplementedError
