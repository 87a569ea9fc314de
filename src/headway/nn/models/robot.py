"""Robot observations as tokens: the state, camera images and the words of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import EmbedConfig, TokenEmbed, TokenEmbedConfig
from headway.nn.models.patches import Learnt, PatchEmbed, PatchEmbedConfig
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import SinusoidalConfig
from headway.nn.parts.projection import Projection


class Observations(NamedTuple):
    """Observations of B robots: `states`, a batch of images per camera, and the `words` of their tasks, `lengths` of
    them per row. Inputs that a model does not take are None or empty.

    `latent` selects one of several ways to do a task; None means 0, their mean. For models with a history, states and
    images have a second dimension of steps, the oldest first.
    """

    states: Float[Tensor, "B *N S"] | None = None
    images: tuple[Tensor, ...] = ()
    words: Int[Tensor, "B W"] | None = None
    lengths: Int[Tensor, "B"] | None = None
    latent: Float[Tensor, "B Z"] | None = None

    @property
    def rows(self) -> int:
        first = self.states if self.states is not None else self.images[0]
        return first.shape[0]

    @property
    def device(self) -> torch.device:
        return (self.states if self.states is not None else self.images[0]).device

    @property
    def dtype(self) -> torch.dtype:
        return (self.states if self.states is not None else self.images[0]).dtype

    def to(self, device: torch.device | str) -> Observations:
        some = (self.states, self.words, self.lengths, self.latent)
        states, words, lengths, latent = (None if each is None else each.to(device) for each in some)
        return Observations(states, tuple(image.to(device) for image in self.images), words, lengths, latent)

    def select(self, rows: Int[Tensor, "R"]) -> Observations:
        """The observations of some rows."""
        some = (self.states, self.words, self.lengths, self.latent)
        states, words, lengths, latent = (None if each is None else each[rows] for each in some)
        return Observations(states, tuple(image[rows] for image in self.images), words, lengths, latent)


def in_order(steps: Sequence[Observations]) -> Observations:
    """Stack the observations of several steps, the oldest first: states [B, N, S], images [B, N, 3, H, W]. A single
    step is returned unchanged.
    """
    if len(steps) == 1:
        return steps[0]
    states = [each.states for each in steps if each.states is not None]
    images = tuple(torch.stack(own, 1) for own in zip(*(each.images for each in steps)))
    return Observations(torch.stack(states, 1) if states else None, images)


@register("robot")
@dataclass(frozen=True)
class RobotEmbedConfig(EmbedConfig):
    """Tokens: the latent, the state, one per image patch of each camera, and the words of the task if the model has a
    vocabulary.

    `images` is the patch embedding of the images: linear or convolutional, with a position per patch of the grid.
    `latent` is the size of the latent of an action chunk, which becomes one token; 0 for none.
    """

    states: int = 1  # size of the state, 0 for none
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's images
    images: PatchEmbedConfig = PatchEmbedConfig((16, 16), (96, 96), tokens=0, stem="convolutional")
    latent: int = 0
    norm: NormConfig | None = None  # norm of all tokens
    dropout: float = 0.0  # dropout rate of all tokens

    @property
    def length(self) -> int:
        """Tokens of an observation, without the words of its task."""
        return self.front + sum(each.length for each in self.eyes)

    @property
    def front(self) -> int:
        """Number of latent and state tokens."""
        return bool(self.latent) + bool(self.states)

    @property
    def eyes(self) -> tuple[PatchEmbedConfig, ...]:
        """The patch embedding of each camera. Raises ConfigError for sizes that do not divide into patches."""
        return tuple(replace(self.images, size=size) for size in self.cameras)

    def fitted(self, states: int, cameras: tuple[tuple[int, int], ...]) -> RobotEmbedConfig:
        """A copy for these state and camera sizes. Raises ConfigError for images that do not divide into patches."""
        found = replace(self, states=states, cameras=cameras)
        _ = found.eyes
        return found

    def reads(self, symbols: int, context: int | None) -> str:
        sizes = ", ".join(f"{high} x {wide}" for high, wide in self.cameras)
        seen = f", {len(self.cameras)} cameras of {sizes}" if self.cameras else ""
        words = f", {symbols:,} words" if symbols else ""
        return f"states of size {self.states}{seen}{words}, {self.length} tokens"

    def summary(self) -> str:
        return f"robot, images by {self.images.summary()}" if self.cameras else "robot"

    def build(self, width: int, symbols: int, context: int | None) -> RobotEmbed:
        if not self.states and not self.cameras:
            raise ConfigError("the observation has no state and no cameras; set model.observation.states or cameras")
        return RobotEmbed(self, width, symbols)


class RobotEmbed(nn.Module):
    """Zhao et al. 2023, figure 4: the latent, the state and the image patches of all cameras form one sequence.

    The words of the task come last, because their number varies by row.
    """

    def __init__(self, config: RobotEmbedConfig, width: int, symbols: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.table = None  # the table of words is not shared
        self.latent = Projection(config.latent, width) if config.latent else None
        self.states = Projection(config.states, width) if config.states else None
        self.kinds = Learnt(config.front, width) if config.front else None
        self.cameras = nn.ModuleList(eye.build(width, 0, None) for eye in config.eyes)
        self.words = TokenEmbedConfig(SinusoidalConfig()).build(width, symbols, None) if symbols else None
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def whole(self, seen: Observations) -> Layout:
        """One document per row. Raises UserError for missing or unsupported inputs."""
        self._check(seen)
        length = self.config.length
        if self.words is None or seen.words is None or seen.lengths is None:
            return Layout.full(seen.rows, length, device=seen.device)
        lengths = length + seen.lengths
        return Layout.padded(lengths, length + seen.words.shape[1])

    def forward(self, seen: Observations, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        front = [] if self.latent is None else [self.latent(self._held(seen))]
        if self.states is not None:
            front.append(self.states(seen.states))
        # Add a learned vector to each: otherwise a later norm would remove their magnitude.
        parts = [] if self.kinds is None else [torch.stack(front, 1) + self.kinds.table]
        for camera, images in zip(self.cameras, seen.images):
            assert isinstance(camera, PatchEmbed)
            parts.append(camera(images, camera.whole(images))[0])
        return self.dropout(self.norm(torch.cat([*parts, *self._told(seen)], 1))), layout

    def _held(self, seen: Observations) -> Float[Tensor, "B Z"]:
        """The latent of the observations, or zeros."""
        if seen.latent is not None:
            return seen.latent
        return torch.zeros(seen.rows, self.config.latent, device=seen.device)

    def _told(self, seen: Observations) -> list[Tensor]:
        if self.words is None or seen.words is None:
            return []
        words = cast(TokenEmbed, self.words)
        return [words(seen.words, words.whole(seen.words))[0]]

    def _check(self, seen: Observations) -> None:
        size = 0 if seen.states is None else seen.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states have size {size}, not this model's {self.config.states}; pass the robot's states")
        if len(seen.images) != len(self.cameras):
            raise UserError(
                f"images of {len(seen.images)} cameras for a model with {len(self.cameras)}; pass all of its cameras"
            )
        if self.words is None and seen.words is not None:
            raise UserError("this model does not take task words; remove them")
        if self.words is not None and seen.words is None:
            raise UserError("this model needs the words of the task; pass them")
