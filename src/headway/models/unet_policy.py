"""Diffusion Policy with a U-Net over time: what a robot saw last becomes its next actions, by taking noise away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.models.chunks import Chunks, Drawn, Noised
from headway.models.diffusion import DiffusionConfig
from headway.models.heads import Loss
from headway.models.keypoints import Glimpses, KeypointsConfig
from headway.models.robot import Observations
from headway.models.transformer import ModelConfig
from headway.models.unet import UNet, UNetConfig
from headway.parts.feedforward import Terms
from headway.parts.init import InitConfig, initialise

_HEAD = DiffusionConfig(sampled=100, says="noise", clip=1.0, sampler="ddpm", spacing="leading")  # that of the paper


@register("unet-policy")
@dataclass(frozen=True)
class UNetPolicyConfig(ModelConfig):
    """What was seen at the last `history` steps tells a U-Net which `horizon` actions to make of noise; the first of
    them is that of the oldest of these steps, so that `chunk` are left from the present on.
    """

    horizon: int = 16  # actions that are said at once, past ones included
    history: int = 2  # steps of which it is read what was seen
    actions: int = 1  # numbers of an action; the data decide
    observation: KeypointsConfig = KeypointsConfig()  # what is read of a step
    net: UNetConfig = UNetConfig()  # what takes the noise away
    head: DiffusionConfig = _HEAD  # how chunks are learnt
    init: InitConfig = InitConfig(matrices="fan_in")  # how weights start

    def __post_init__(self) -> None:
        if min(self.actions, self.history) < 1 or self.horizon < self.history:
            raise ConfigError(
                f"{self.horizon} actions of {self.actions} numbers from {self.history} steps; set model.actions and "
                "model.history to 1 or more, and model.horizon to model.history or more"
            )
        if self.horizon % self.net.multiple:
            raise ConfigError(
                f"model.horizon is {self.horizon}, and a U-Net of {len(self.net.widths)} levels halves it to the end; "
                f"give a multiple of {self.net.multiple}"
            )

    @property
    def chunk(self) -> int:
        """The actions from the present on."""
        return self.horizon - self.history + 1

    @property
    def words(self) -> int:
        """It reads no names of tasks."""
        return 0

    @property
    def context(self) -> None:
        """There is no limit of what stands in a row: an observation has its own length."""
        return

    def build(self, seed: int | None = 0) -> UNetPolicy:
        return UNetPolicy(self, seed)


class UNetPolicy(nn.Module):
    """Chi et al. 2023, section 3.1."""

    def __init__(self, config: UNetPolicyConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.glimpses = Glimpses(config.observation)
        self.net = UNet(config.net, config.actions, config.history * config.observation.width)
        if seed is not None:
            initialise(self, config.init, 1, seed)

    def forward(self, seen: Observations, drawn: Drawn) -> Float[Tensor, "B C A"]:
        """The chunks from the present on, in the codec's numbers; `drawn` is the noise of which they are made."""
        return self.config.head.said(self, seen, drawn)[:, self.config.history - 1 :]

    def losses(self, seen: Observations, chunks: Chunks, drawn: Drawn) -> dict[str, Loss]:
        """What is learned from demonstrated chunks of the whole horizon."""
        return self.config.head.losses(self, seen, chunks, drawn)

    def draw(self, random: np.random.Generator, rows: int) -> Drawn:
        """What chance gives to so many chunks."""
        return self.config.head.draw(random, rows, self.config.horizon, self.config.actions)

    def look(self, seen: Observations) -> tuple[Float[Tensor, "B E"], Terms]:
        """What the U-Net is told of observations; there are no auxiliary losses."""
        return self.glimpses(seen).flatten(1), {}

    def say(self, heard: Float[Tensor, "B E"], noised: Noised | None) -> Float[Tensor, "B C A"]:
        """What the U-Net says of each action of the horizon."""
        assert noised is not None  # a diffusion's head always gives it
        return self.net(noised.actions, noised.steps, heard)

    def infer(self, seen: Observations, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """There is no latent, so no head of this model asks for it."""
        raise NotImplementedError
