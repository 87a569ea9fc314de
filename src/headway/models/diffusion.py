"""Chunks of actions by diffusion: they are learnt with noise, and said by taking it away step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.config import register
from headway.errors import ConfigError
from headway.models.chunks import Chunker, ChunkHeadConfig, Chunks, Drawn, Noised, summed
from headway.models.heads import Loss
from headway.models.robot import Observations

_OFFSET = 0.008  # of the schedule: so that the first step is not too small
_MOST = 0.999  # of what a step takes away


def kept_signal(steps: int) -> Float[Tensor, "T"]:
    """How much of a signal's square is left after each step, the product of alphas: Nichol and Dhariwal 2021, equation
    17, a squared cosine whose last steps are limited.
    """
    places = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((places + _OFFSET) / (1 + _OFFSET) * math.pi / 2).square()
    taken = (1 - curve[1:] / curve[:-1]).clamp(max=_MOST)
    return (1 - taken).cumprod(0).float()


def places_of(steps: int, sampled: int) -> list[int]:
    """`sampled` of the steps, from the last one down, evenly apart."""
    return [steps * (sampled - place) // sampled - 1 for place in range(sampled)]


def ddim(
    noise: Float[Tensor, "B C A"],
    clean: Callable[[Float[Tensor, "B C A"], Int[Tensor, "B"]], Float[Tensor, "B C A"]],
    kept: Float[Tensor, "T"],
    sampled: int,
) -> Float[Tensor, "B C A"]:
    """Song et al. 2021 (DDIM), equation 12 with sigma 0: from noise to a sample in `sampled` of the T steps.

    `clean(x, steps)` says what x is without its noise.
    """
    x, places = noise, places_of(len(kept), sampled)
    for place, following in zip(places, [*places[1:], None]):
        said = clean(x, torch.full((x.shape[0],), place, device=x.device))
        if following is None:
            return said
        direction = (x - kept[place].sqrt() * said) / (1 - kept[place]).sqrt()
        x = kept[following].sqrt() * said + (1 - kept[following]).sqrt() * direction
    return x


@register("diffusion")
@dataclass(frozen=True)
class DiffusionConfig(ChunkHeadConfig):
    """Diffusion Policy (Chi et al. 2023, section 2): the decoder reads a chunk with noise and says the `noise` in it
    (their equation 5) or the `sample` without it. There are `steps` of noise, of which `sampled` are taken away.

    `clip` holds what is said of the sample within it, in the codec's numbers. Where noise is said it is needed, as the
    first steps divide by almost nothing: 1 for actions that are scaled by their range (task.scaling=range).
    """

    steps: int = 100  # steps of noise in training
    sampled: int = 10  # steps in which it is taken away in use
    says: Literal["noise", "sample"] = "sample"  # what the decoder gives: the noise, or the sample without it
    clip: float | None = None

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
        noise = random.standard_normal((rows, chunk, actions), np.float32)
        return Drawn(torch.from_numpy(noise), torch.from_numpy(random.integers(0, self.steps, rows)))

    def losses(self, model: Chunker, seen: Observations, chunks: Chunks, drawn: Drawn) -> dict[str, Loss]:
        """Ho et al. 2020, equation 14, over the actions that there are."""
        assert drawn.steps is not None
        left = self._kept(drawn.noise)[drawn.steps][:, None, None]
        noised = left.sqrt() * chunks.actions + (1 - left).sqrt() * drawn.noise
        memory, terms = model.look(seen)
        wanted = drawn.noise if self.says == "noise" else chunks.actions
        error = (model.say(memory, Noised(noised, drawn.steps)) - wanted).square()
        return {"actions": summed(error, chunks.keep, terms)}

    def said(self, model: Chunker, seen: Observations, drawn: Drawn) -> Float[Tensor, "B C A"]:
        memory, _ = model.look(seen)
        kept = self._kept(drawn.noise)

        def clean(x: Tensor, steps: Tensor) -> Tensor:
            said = model.say(memory, Noised(x, steps))
            if self.says == "noise":
                left = kept[steps][:, None, None]
                said = (x - (1 - left).sqrt() * said) / left.sqrt()
            return said if self.clip is None else said.clamp(-self.clip, self.clip)

        return ddim(drawn.noise, clean, kept, self.sampled)

    def _kept(self, like: Tensor) -> Float[Tensor, "T"]:
        return kept_signal(self.steps).to(like)
