"""Robot observations as tokens: the state, camera images and the words of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout, to_device
from headway.nn.mixers.base import tree_map
from headway.nn.models.embeds import Embed, EmbedConfig, TokenEmbed, TokenEmbedConfig
from headway.nn.models.keypoints import KeypointEmbedConfig
from headway.nn.models.patches import LearnedVectors, PatchEmbedConfig
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import SinusoidalConfig
from headway.nn.parts.projection import Projection


class Observations(NamedTuple):
    """Observations of B robots: `states`, a batch of images per camera, and the `words` of their tasks, with their
    number per row as `lengths`. Inputs that a model does not take are None or empty.

    `latent` selects one of several ways to do a task; None means 0, their mean. `unseen` are the scaled values of a
    state that the model does not take; it learns to predict them from the others and the images. For models with a
    history, states and images have a second dimension for steps, the oldest first.
    """

    states: Float[Tensor, "B *N S"] | None = None
    images: tuple[Tensor, ...] = ()
    words: Int[Tensor, "B W"] | None = None
    lengths: Int[Tensor, "B"] | None = None
    latent: Float[Tensor, "B Z"] | None = None
    unseen: Float[Tensor, "B U"] | None = None

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
        return to_device(self, device)

    def select(self, rows: Int[Tensor, "R"]) -> Observations:
        """The observations of some rows."""
        return tree_map(lambda tensor: tensor[rows], self)


def stack_steps(steps: Sequence[Observations]) -> Observations:
    """Stack the observations of several steps, the oldest first: states [B, N, S], images [B, N, 3, H, W]. A single
    step is returned unchanged.
    """
    if len(steps) == 1:
        return steps[0]
    states = [step.states for step in steps if step.states is not None]
    images = tuple(torch.stack(camera_images, 1) for camera_images in zip(*(step.images for step in steps)))
    return Observations(torch.stack(states, 1) if states else None, images)


@register("robot")
@dataclass(frozen=True)
class RobotEmbedConfig(EmbedConfig):
    """Tokens: the latent, the state, one per image patch of each camera, and the words of the task if the model has a
    vocabulary.

    `images` is the embedding of the images: patches, linear or convolutional, with a position per patch of the grid; or
    keypoints, with one token per image.
    `latent` is the size of the latent of an action chunk, which becomes one token; 0 for none.
    """

    states: int = 1  # size of the state, 0 for none
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's images
    images: EmbedConfig = PatchEmbedConfig((16, 16), (96, 96), tokens=0, stem="convolutional")  # patches or keypoints
    latent: int = 0
    norm: NormConfig | None = None  # norm of all tokens
    dropout: float = 0.0  # dropout rate of all tokens

    def __post_init__(self) -> None:
        if not isinstance(self.images, PatchEmbedConfig | KeypointEmbedConfig):
            raise ConfigError(f"{type(self.images).__name__} does not embed images; choose from: patches, keypoints")

    @property
    def length(self) -> int:
        """Tokens of an observation, without the words of its task."""
        return self.front + sum(eye.length for eye in self.eyes)

    @property
    def front(self) -> int:
        """Number of latent and state tokens."""
        return bool(self.latent) + bool(self.states)

    @property
    def eyes(self) -> tuple[PatchEmbedConfig | KeypointEmbedConfig, ...]:
        """The embedding of each camera. Raises ConfigError for sizes that do not divide into patches."""
        images = cast(PatchEmbedConfig | KeypointEmbedConfig, self.images)
        return tuple(replace(images, size=size) for size in self.cameras)

    def with_inputs(self, states: int, cameras: tuple[tuple[int, int], ...]) -> RobotEmbedConfig:
        """A copy for these state and camera sizes. Raises ConfigError for images that do not divide into patches."""
        config = replace(self, states=states, cameras=cameras)
        _ = config.eyes
        return config

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        sizes = ", ".join(f"{height} x {width}" for height, width in self.cameras)
        count = len(self.cameras)
        cameras = f", {count} camera{'s' if count > 1 else ''} of {sizes}" if count else ""
        words = f", {vocab_size:,} words" if vocab_size else ""
        return f"states of size {self.states}{cameras}{words}, {self.length} tokens"

    def summary(self) -> str:
        return f"robot, images by {self.images.summary()}" if self.cameras else "robot"

    def build(self, width: int, vocab_size: int, context: int | None) -> RobotEmbed:
        if not self.states and not self.cameras:
            raise ConfigError("the observation has no state and no cameras; set model.observation.states or cameras")
        return RobotEmbed(self, width, vocab_size)


class RobotEmbed(Embed):
    """Zhao et al. 2023, figure 4: the latent, the state and the image patches of all cameras form one sequence.

    The words of the task come last, because their number varies by row.
    """

    def __init__(self, config: RobotEmbedConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.latent = Projection(config.latent, width) if config.latent else None
        self.states = Projection(config.states, width) if config.states else None
        self.kinds = LearnedVectors(config.front, width) if config.front else None
        self.cameras = nn.ModuleList(eye.build(width, 0, None) for eye in config.eyes)
        self.words = TokenEmbedConfig(SinusoidalConfig()).build(width, vocab_size, None) if vocab_size else None
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def default_layout(self, observations: Observations) -> Layout:
        """One document per row. Raises UserError for missing or unsupported inputs."""
        size = 0 if observations.states is None else observations.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states have size {size}, not this model's {self.config.states}; pass the robot's states")
        if len(observations.images) != len(self.cameras):
            raise UserError(
                f"images from {len(observations.images)} cameras for a model with {len(self.cameras)}; pass images "
                "from all its cameras"
            )
        if self.words is None and observations.words is not None:
            raise UserError("this model does not take task words; remove them")
        if self.words is not None and observations.words is None:
            raise UserError("this model needs the words of the task; pass them")
        length = self.config.length
        if self.words is None or observations.words is None or observations.lengths is None:
            return Layout.full(observations.rows, length, device=observations.device)
        lengths = length + observations.lengths
        return Layout.padded(lengths, length + observations.words.shape[1])

    def forward(self, observations: Observations, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        front = []
        if self.latent is not None:
            latent = observations.latent
            if latent is None:
                latent = torch.zeros(observations.rows, self.config.latent, device=observations.device)
            front.append(self.latent(latent))
        if self.states is not None:
            front.append(self.states(observations.states))
        # Add a learned vector to the latent and to the states: without it, a later norm would erase their scale.
        parts = [] if self.kinds is None else [torch.stack(front, 1) + self.kinds.table]
        for camera, images in zip(self.cameras, observations.images):
            parts.append(camera(images, cast(Embed, camera).default_layout(images))[0])
        if self.words is not None and observations.words is not None:
            words = cast(TokenEmbed, self.words)
            parts.append(words(observations.words, words.default_layout(observations.words))[0])
        return self.dropout(self.norm(torch.cat(parts, 1))), layout
