"""A policy by a U-Net over time: chunks of actions by diffusion, told what is seen at every scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.nn.kernels import pointwise
from headway.nn.models.chunks import Chunks, Drawn, Noised
from headway.nn.models.diffusion import DiffusionConfig
from headway.nn.models.heads import Loss
from headway.nn.models.keypoints import Glimpses, KeypointsConfig
from headway.nn.models.robot import Observations
from headway.nn.models.transformer import ModelConfig
from headway.nn.parts.feedforward import Terms
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.norm import GroupNorm
from headway.nn.parts.projection import Convolution, DoublingConvolution, Projection

LAST_GROUPS = 8  # of the norm before the last map
_LONGEST = 10000.0  # of the sinusoids that say which step it is


@dataclass(frozen=True)
class UNetConfig:
    """`widths` are those of the levels, each of which has half the time of the one before; convolutions have `taps`
    taps and norms `groups` groups. What is taken into account shifts the channels of a layer and, `scaled`, scales
    them.
    """

    widths: tuple[int, ...] = (512, 1024, 2048)  # channels of each level
    taps: int = 5  # of convolutions, odd
    groups: int = 8  # of channels, which are normalised together
    step: int = 128  # numbers that say which step of the diffusion it is
    scaled: bool = True  # whether channels are scaled, too

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.groups < 1:
            raise ConfigError(f"levels of {list(self.widths)} channels in {self.groups} groups; give 1 or more of each")
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(f"{width} channels are no multiple of {self.groups} groups; give such")
        if self.widths[0] % LAST_GROUPS:
            raise ConfigError(f"the first level has {self.widths[0]} channels; give a multiple of {LAST_GROUPS}")
        if self.taps < 1 or self.taps % 2 == 0:
            raise ConfigError(f"convolutions of {self.taps} taps have no middle; give an odd number")
        if self.step < 4 or self.step % 2:
            raise ConfigError(f"a step of the diffusion in {self.step} numbers; give an even number of 4 or more")

    @property
    def multiple(self) -> int:
        """Of which lengths must be multiples, so that time can be halved from level to level."""
        return 2 ** (len(self.widths) - 1)


class UNet(nn.Module):
    """Janner et al. 2022, appendix C, as Chi et al. 2023 (section 3.1) condition it: each level down keeps what it
    gives for the level up, and every layer is modulated by the step of the diffusion and by what is seen.
    """

    def __init__(self, config: UNetConfig, numbers: int, conditions: int) -> None:
        """It reads and gives `numbers` at each place of time; what is seen are `conditions` numbers."""
        super().__init__()
        self.config = config
        widths, told = config.widths, config.step + conditions
        self.up, self.down = Projection(config.step, 4 * config.step), Projection(4 * config.step, config.step)

        def level(before: int, width: int) -> nn.ModuleList:
            return nn.ModuleList([ModulatedLayer(config, each, width, told) for each in (before, width)])

        self.descent = nn.ModuleList(level(before, width) for before, width in zip((numbers, *widths), widths))
        self.halving = nn.ModuleList(Convolution(width, width, 3, 2) for width in widths[:-1])
        self.middle = level(widths[-1], widths[-1])
        pairs = list(pairwise(widths))[::-1]
        self.ascent = nn.ModuleList(level(2 * width, narrower) for narrower, width in pairs)
        self.doubling = nn.ModuleList(DoublingConvolution(narrower, narrower) for narrower, _ in pairs)
        self.last = Convolution(widths[0], widths[0], config.taps)
        self.last_norm = GroupNorm(LAST_GROUPS, widths[0])
        self.out = Projection(widths[0], numbers)

    def forward(
        self, x: Float[Tensor, "B T A"], steps: Int[Tensor, "B"], seen: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B T A"]:
        told = _mish(torch.cat([self.down(_mish(self.up(self._sinusoids(steps, x)))), seen], -1))[:, None]
        kept = []
        for number, level in enumerate(self.descent):
            x = self.halving[number - 1](x) if number else x
            x = _through(level, x, told)
            kept.append(x)
        x = _through(self.middle, x, told)
        for level, doubling in zip(self.ascent, self.doubling):
            x = doubling(_through(level, torch.cat([x, kept.pop()], -1), told))
        return self.out(_mish(self.last_norm(self.last(x))))

    def _sinusoids(self, steps: Int[Tensor, "B"], like: Tensor) -> Float[Tensor, "B E"]:
        half = self.config.step // 2
        slower = -math.log(_LONGEST) / (half - 1)
        angles = steps[:, None] * torch.exp(slower * torch.arange(half, device=like.device))
        return torch.cat([angles.sin(), angles.cos()], -1).to(like.dtype)


class ModulatedLayer(nn.Module):
    """Two convolutions around which the input is led, by a map where its width changes; what the first gives is
    modulated (Perez et al. 2018, equation 2).
    """

    def __init__(self, config: UNetConfig, channels: int, width: int, told: int) -> None:
        super().__init__()
        self.scaled = config.scaled
        self.first, self.second = Convolution(channels, width, config.taps), Convolution(width, width, config.taps)
        self.first_norm, self.second_norm = GroupNorm(config.groups, width), GroupNorm(config.groups, width)
        self.modulate = Projection(told, 2 * width if config.scaled else width)
        self.around = Projection(channels, width) if channels != width else nn.Identity()

    def forward(self, x: Float[Tensor, "B T C"], told: Float[Tensor, "B 1 E"]) -> Float[Tensor, "B T D"]:
        y = self._modulated(_mish(self.first_norm(self.first(x))), self.modulate(told))
        return _mish(self.second_norm(self.second(y))) + self.around(x)

    def _modulated(self, y: Tensor, by: Tensor) -> Tensor:
        if not self.scaled:
            return y + by
        scale, shift = by.chunk(2, -1)
        return scale * y + shift


def _through(layers: nn.Module, x: Tensor, told: Tensor) -> Tensor:
    for layer in cast(Sequence[nn.Module], layers):
        x = layer(x, told)
    return x


def _mish(x: Tensor) -> Tensor:
    """Misra 2020."""
    return pointwise(F.mish, x)


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
