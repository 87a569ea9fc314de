"""From what a robot sees at a step to tokens: its state, the pictures of its cameras, the words of its task."""

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
    """What B robots see: `states`, a batch of pictures for each camera, and `words` of their tasks, of which each row
    has so many as `lengths` says. What a model does not read is None or empty.

    `latent` says in which of several ways a task is done; None is 0, the mean of all. A model that reads several steps
    has their states and pictures side by side in a second dimension, the oldest first.
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
        """Those of some rows."""
        some = (self.states, self.words, self.lengths, self.latent)
        states, words, lengths, latent = (None if each is None else each[rows] for each in some)
        return Observations(states, tuple(image[rows] for image in self.images), words, lengths, latent)


def in_order(steps: Sequence[Observations]) -> Observations:
    """Those of several steps side by side, the oldest first: states [B, N, S], pictures [B, N, 3, H, W]; a single step
    as it is.
    """
    if len(steps) == 1:
        return steps[0]
    states = [each.states for each in steps if each.states is not None]
    images = tuple(torch.stack(own, 1) for own in zip(*(each.images for each in steps)))
    return Observations(torch.stack(states, 1) if states else None, images)


@register("robot")
@dataclass(frozen=True)
class RobotEmbedConfig(EmbedConfig):
    """A token of the state (`states` numbers, 0 for none), the words of the task where the model has symbols for such,
    and a token for each patch of the pictures of each camera, whose sizes (height, width) are in `cameras`.

    `images` says how pictures become patches: by a map or by convolutions, with a position for each place of the grid.
    `latent` is the size of the variable behind a chunk of actions, which is a token of its own; 0 for none.
    """

    states: int = 1  # numbers of the state, 0 for none
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's pictures
    images: PatchEmbedConfig = PatchEmbedConfig((16, 16), (96, 96), tokens=0, stem="convolutional")
    latent: int = 0
    norm: NormConfig | None = None  # of all tokens
    dropout: float = 0.0  # of all tokens

    @property
    def length(self) -> int:
        """The tokens of an observation, without the words of its task."""
        return self.front + sum(each.length for each in self.eyes)

    @property
    def front(self) -> int:
        """The tokens of latent and state."""
        return bool(self.latent) + bool(self.states)

    @property
    def eyes(self) -> tuple[PatchEmbedConfig, ...]:
        """How the pictures of each camera become patches. ConfigError for sizes that are no whole patches."""
        return tuple(replace(self.images, size=size) for size in self.cameras)

    def fitted(self, states: int, cameras: tuple[tuple[int, int], ...]) -> RobotEmbedConfig:
        """The same for states of so many numbers and cameras of these sizes. ConfigError for what are no patches."""
        found = replace(self, states=states, cameras=cameras)
        _ = found.eyes
        return found

    def reads(self, symbols: int, context: int | None) -> str:
        sizes = ", ".join(f"{high} x {wide}" for high, wide in self.cameras)
        seen = f", {len(self.cameras)} cameras of {sizes}" if self.cameras else ""
        words = f", {symbols:,} words" if symbols else ""
        return f"states of {self.states} numbers{seen}{words}, {self.length} tokens"

    def summary(self) -> str:
        return f"robot, pictures by {self.images.summary()}" if self.cameras else "robot"

    def build(self, width: int, symbols: int, context: int | None) -> RobotEmbed:
        if not self.states and not self.cameras:
            raise ConfigError(
                "a robot of no state and no cameras sees nothing; set model.observation.states or cameras"
            )
        return RobotEmbed(self, width, symbols)


class RobotEmbed(nn.Module):
    """Zhao et al. 2023, figure 4: the latent, the state and the places of all cameras' pictures are one sequence.

    The words of the task stand last, as rows may have different numbers of them.
    """

    def __init__(self, config: RobotEmbedConfig, width: int, symbols: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.table = None  # the words' is not shared with anything
        self.latent = Projection(config.latent, width) if config.latent else None
        self.states = Projection(config.states, width) if config.states else None
        self.kinds = Learnt(config.front, width) if config.front else None
        self.cameras = nn.ModuleList(eye.build(width, 0, None) for eye in config.eyes)
        self.words = TokenEmbedConfig(SinusoidalConfig()).build(width, symbols, None) if symbols else None
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def whole(self, seen: Observations) -> Layout:
        """Each row is one document. UserError for what this model does not read, or misses."""
        self._check(seen)
        length = self.config.length
        if self.words is None or seen.words is None or seen.lengths is None:
            return Layout.full(seen.rows, length, device=seen.device)
        lengths = length + seen.lengths
        return Layout.padded(lengths, length + seen.words.shape[1])

    def forward(self, seen: Observations, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        parts = [*self._front(seen), *self._looked(seen), *self._told(seen)]
        return self.dropout(self.norm(torch.cat(parts, 1))), layout

    def _front(self, seen: Observations) -> list[Tensor]:
        """Latent and state, each with a learned vector: a norm that follows would else forget how large they are."""
        found = [] if self.latent is None else [self.latent(self._held(seen))]
        if self.states is not None:
            found.append(self.states(seen.states))
        return [] if self.kinds is None else [torch.stack(found, 1) + self.kinds.table]

    def _held(self, seen: Observations) -> Float[Tensor, "B Z"]:
        """The latent that is given, or 0."""
        if seen.latent is not None:
            return seen.latent
        return torch.zeros(seen.rows, self.config.latent, device=seen.device)

    def _looked(self, seen: Observations) -> list[Tensor]:
        found = []
        for camera, images in zip(self.cameras, seen.images):
            assert isinstance(camera, PatchEmbed)
            found.append(camera(images, camera.whole(images))[0])
        return found

    def _told(self, seen: Observations) -> list[Tensor]:
        if self.words is None or seen.words is None:
            return []
        words = cast(TokenEmbed, self.words)
        return [words(seen.words, words.whole(seen.words))[0]]

    def _check(self, seen: Observations) -> None:
        size = 0 if seen.states is None else seen.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states of {size} numbers for a model that reads {self.config.states}; give the robot's")
        if len(seen.images) != len(self.cameras):
            raise UserError(
                f"pictures of {len(seen.images)} cameras for a model of {len(self.cameras)}; give all of its"
            )
        if self.words is None and seen.words is not None:
            raise UserError("this model reads no words of tasks, and some are given; leave them out")
        if self.words is not None and seen.words is None:
            raise UserError("this model reads the words of tasks, and none are given; give those of the task")
