"""Positions: rotary embeddings of queries and keys, and vectors added to embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout, to_device

Frequencies = Float[Tensor, "R"]
_WITHOUT_FLOAT64 = ("mps",)  # types of devices


@family
@dataclass(frozen=True)
class ScalingConfig:
    """A scaling of the rotary frequencies, fixed per model: later tokens never change the rotation of earlier ones."""

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        """The scaled frequencies (radians per position) and a factor on cosine and sine."""
        raise NotImplementedError


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embedding over the first `fraction` of each head's features."""

    theta: float = 10000.0  # base of the wavelengths
    fraction: float = 1.0  # share of a head's features to rotate
    scaling: ScalingConfig | None = None  # scaling for contexts longer than in training
    stored: bool = False  # whether the frequencies are a tensor of the model (ESM-2 has rounded ones)

    def __post_init__(self) -> None:
        if not (self.theta > 0 and 0 < self.fraction <= 1):
            raise ConfigError(
                f"rotary.theta is {self.theta} and rotary.fraction {self.fraction}; set a theta above 0, and a "
                "fraction above 0 and at most 1"
            )


def angle_dtype(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.dtype:
    """The dtype of angles: `dtype`, but float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else dtype


def rotary_frequencies(theta: float, size: int) -> Frequencies:
    # Always on the CPU: on the meta device torch would load its compiler for this, which takes seconds.
    return theta ** (-torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size)


class Rotary:
    """Angles of rotary positions: position x theta^(-2i / R) (Su et al. 2021, equation 15), computed once for all
    layers.
    """

    def __init__(self, config: RotaryConfig, head_size: int) -> None:
        size = int(head_size * config.fraction)
        if size < 2 or size % 2:
            raise ConfigError(
                f"rotary positions need an even number of features per head, not {size}; choose another head size"
            )
        self.config = config
        self.size = size
        frequencies = rotary_frequencies(config.theta, size)
        self.factor = 1.0
        if config.scaling is not None:
            frequencies, self.factor = config.scaling.apply(frequencies, config.theta)
        self.frequencies = frequencies

    def angles(self, layout: Layout, like: Tensor) -> tuple[Float[Tensor, "#B T 1 R"], Float[Tensor, "#B T 1 R"]]:
        """Cosine and sine."""

        def compute() -> tuple[Tensor, ...]:
            positions = layout.positions[:1] if layout.dense else layout.positions
            frequencies = to_device(self.frequencies.to(angle_dtype(like.device, self.frequencies.dtype)), like.device)
            angles = positions.clamp(min=0)[:, :, None, None] * frequencies
            return tuple((part * self.factor).to(like.dtype) for part in (angles.cos(), angles.sin()))

        same = self if self.config.stored else self.config  # what rotates alike
        return layout.derived(("rotary", same, self.size, like.dtype), compute)


@family
@dataclass(frozen=True)
class PositionsConfig:
    """A vector for each position, added to the embedding."""

    def build(self, width: int, context: int | None) -> nn.Module:
        raise NotImplementedError


@register("sinusoidal")
@dataclass(frozen=True)
class SinusoidalConfig(PositionsConfig):
    """Sinusoids of the position, as in the transformer of 2017."""

    theta: float = 10000.0  # base of the wavelengths
    interleaved: bool = True  # sines and cosines alternate; false: all sines before all cosines
    offset: int = 0  # number of the first position (M2M-100: 2)

    def __post_init__(self) -> None:
        if self.theta <= 0:
            raise ConfigError(f"positions.theta is {self.theta}; set a number above 0")

    def build(self, width: int, context: int | None) -> nn.Module:
        if width % 2:
            raise ConfigError(f"width {width} is odd; set an even width for sinusoidal positions")
        return Sinusoidal(self, width)


class Sinusoidal(nn.Module):
    """Vaswani et al. 2017, section 3.5: sin and cos of position / theta^(2i / D)."""

    def __init__(self, config: SinusoidalConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        def compute() -> Tensor:
            positions = layout.positions[:1] if layout.dense else layout.positions
            steps = torch.arange(0, self.width, 2, device=like.device, dtype=angle_dtype(like.device))
            rates = torch.exp(steps * (-math.log(self.config.theta) / self.width))
            angles = (positions.clamp(min=0) + self.config.offset)[..., None] * rates
            parts = (angles.sin(), angles.cos())
            both = torch.stack(parts, dim=-1).flatten(-2) if self.config.interleaved else torch.cat(parts, dim=-1)
            return both.to(like.dtype)

        return layout.derived(("sinusoidal", self.config, self.width, like.dtype), compute)


@register("learned")
@dataclass(frozen=True)
class LearnedConfig(PositionsConfig):
    """A learned vector per position of the context."""

    offset: int = 0  # unused rows of the table before position 0 (RoBERTa)

    def build(self, width: int, context: int | None) -> nn.Module:
        if context is None:
            raise ConfigError("learned positions need a context; set model.context to the longest input, such as 1024")
        return Learned(self, width, context)


class Learned(nn.Module):
    """Gehring et al. 2017: a trained vector per position."""

    def __init__(self, config: LearnedConfig, width: int, context: int) -> None:
        super().__init__()
        self.offset = config.offset
        self.table = nn.Parameter(torch.empty(context + config.offset, width))

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        positions = layout.positions[:1] if layout.dense else layout.positions
        return nn.functional.embedding(positions.clamp(min=0) + self.offset, self.table)
