"""Chunks of actions by diffusion: they are learnt with noise, and said by taking it away step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.config import register
from headway.errors import ConfigError
from headway.nn.models.chunks import Chunker, ChunkHeadConfig, Chunks, Drawn, Noised, summed
from headway.nn.models.heads import Loss
from headway.nn.models.robot import Observations

_OFFSET = 0.008  # of the schedule: so that the first step is not too small
_MOST = 0.999  # of what a step takes away

Part = Callable[[Float[Tensor, "B C A"], Int[Tensor, "B"]], tuple[Float[Tensor, "B C A"], Float[Tensor, "B C A"]]]
"""Says what x at given steps is without its noise, held within limits, and the noise in it, which is not."""


def kept_signal(steps: int) -> Float[Tensor, "T"]:
    """How much of a signal's square is left after each step, the product of alphas: Nichol and Dhariwal 2021, equation
    17, a squared cosine whose last steps are limited.
    """
    places = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((places + _OFFSET) / (1 + _OFFSET) * math.pi / 2).square()
    taken = (1 - curve[1:] / curve[:-1]).clamp(max=_MOST)
    return (1 - taken).cumprod(0).float()


def places_of(steps: int, sampled: int, spacing: Literal["trailing", "leading"] = "trailing") -> list[int]:
    """`sampled` of the steps, evenly apart, from the last one down or, "leading", so that the last of them is 0."""
    if spacing == "leading":
        return [steps // sampled * place for place in reversed(range(sampled))]
    return [steps * (sampled - place) // sampled - 1 for place in range(sampled)]


def ddim(
    noise: Float[Tensor, "B C A"], part: Part, kept: Float[Tensor, "T"], places: Sequence[int]
) -> Float[Tensor, "B C A"]:
    """Song et al. 2021 (DDIM), equation 12 with sigma 0: from noise to a sample by the steps that `places` names."""
    x = noise
    for place, following in zip(places, [*places[1:], None]):
        clean, direction = part(x, torch.full((x.shape[0],), place, device=x.device))
        if following is None:
            return clean
        x = kept[following].sqrt() * clean + (1 - kept[following]).sqrt() * direction
    return x


def ddpm(
    noise: Float[Tensor, "B N C A"], part: Part, kept: Float[Tensor, "T"], places: Sequence[int]
) -> Float[Tensor, "B C A"]:
    """Ho et al. 2020, algorithm 2 with the variance of their equation 7: the first of N draws is where it begins, and
    each step but the last adds one of the others.
    """
    x = noise[:, 0]
    for number, (place, following) in enumerate(zip(places, [*places[1:], None]), 1):
        clean, _ = part(x, torch.full((x.shape[0],), place, device=x.device))
        if following is None:
            return clean
        ratio, left = kept[place] / kept[following], 1 - kept[place]
        before = 1 - kept[following]
        mean = kept[following].sqrt() * (1 - ratio) / left * clean + ratio.sqrt() * before / left * x
        x = mean + ((1 - ratio) * before / left).sqrt() * noise[:, number]
    return x


@register("diffusion")
@dataclass(frozen=True)
class DiffusionConfig(ChunkHeadConfig):
    """Diffusion Policy (Chi et al. 2023, section 2): the decoder reads a chunk with noise and says the `noise` in it
    (their equation 5) or the `sample` without it. There are `steps` of noise, of which `sampled` are taken away.

    `clip` holds what is said of the sample within it, in the codec's numbers. Where noise is said it is needed, as the
    first steps divide by almost nothing: 1 for actions that are scaled by their range (task.scaling=range).

    The `sampler` "ddim" adds no noise on the way, "ddpm" does. `spacing` is which of the steps are sampled: from the
    last one down, or ("leading") so that the last of them is step 0, as is common elsewhere.
    """

    steps: int = 100  # steps of noise in training
    sampled: int = 10  # steps in which it is taken away in use
    says: Literal["noise", "sample"] = "sample"  # what the decoder gives: the noise, or the sample without it
    clip: float | None = None
    sampler: Literal["ddim", "ddpm"] = "ddim"  # whether noise is added on the way (ddpm)
    spacing: Literal["trailing", "leading"] = "trailing"  # which of the steps are sampled

    def __post_init__(self) -> None:
        if not 1 <= self.sampled <= self.steps:
            raise ConfigError(
                f"{self.sampled} of {self.steps} steps cannot be sampled; set model.head.sampled to 1 or more, and at "
                "most model.head.steps"
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"model.head.clip is {self.clip}; give a number above 0, or none")
        if self.says == "noise" and self.clip is None:
            raise ConfigError(
                "a head that says noise needs a limit of what is left without it; set model.head.clip=1 "
                "task.scaling=range, or model.head.says=sample"
            )

    @property
    def noised(self) -> bool:
        return True

    def draw(self, random: np.random.Generator, rows: int, chunk: int, actions: int) -> Drawn:
        draws = (self.sampled,) if self.sampler == "ddpm" else ()
        noise = random.standard_normal((rows, *draws, chunk, actions), np.float32)
        return Drawn(torch.from_numpy(noise), torch.from_numpy(random.integers(0, self.steps, rows)))

    def losses(self, model: Chunker, seen: Observations, chunks: Chunks, drawn: Drawn) -> dict[str, Loss]:
        """Ho et al. 2020, equation 14, over the actions that there are."""
        assert drawn.steps is not None
        noise = drawn.noise[:, 0] if self.sampler == "ddpm" else drawn.noise
        left = self._kept(noise)[drawn.steps][:, None, None]
        noised = left.sqrt() * chunks.actions + (1 - left).sqrt() * noise
        memory, terms = model.look(seen)
        wanted = noise if self.says == "noise" else chunks.actions
        error = (model.say(memory, Noised(noised, drawn.steps)) - wanted).square()
        return {"actions": summed(error, chunks.keep, terms)}

    def said(self, model: Chunker, seen: Observations, drawn: Drawn) -> Float[Tensor, "B C A"]:
        memory, _ = model.look(seen)
        kept = self._kept(drawn.noise)

        def part(x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            said, left = model.say(memory, Noised(x, steps)), kept[steps][:, None, None]
            if self.says == "noise":
                clean, noise = (x - (1 - left).sqrt() * said) / left.sqrt(), said
            else:
                clean, noise = said, (x - left.sqrt() * said) / (1 - left).sqrt()
            return clean if self.clip is None else clean.clamp(-self.clip, self.clip), noise

        walk = ddpm if self.sampler == "ddpm" else ddim
        return walk(drawn.noise, part, kept, places_of(self.steps, self.sampled, self.spacing))

    def _kept(self, like: Tensor) -> Float[Tensor, "T"]:
        return kept_signal(self.steps).to(like)
