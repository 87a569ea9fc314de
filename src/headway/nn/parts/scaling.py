"""Scalings of rotary positions to contexts longer than in training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.nn.parts.positions import Frequencies, ScalingConfig, rotary_frequencies


@register("linear")
@dataclass(frozen=True)
class LinearScaling(ScalingConfig):
    """Chen et al. 2023: positions divided by `factor`."""

    factor: float = 1.0  # divisor of positions

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        return frequencies / self.factor, 1.0


@register("dynamic")
@dataclass(frozen=True)
class DynamicScaling(ScalingConfig):
    """NTK-aware scaling: theta grows with `length` beyond the `original` context."""

    factor: float = 1.0  # target context divided by the original one
    original: int = 2048  # context of training
    length: int | None = None  # longest sequence to process; none: original

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        size = 2 * frequencies.numel()
        length = max(self.length or self.original, self.original)
        stretch = self.factor * length / self.original - (self.factor - 1)
        base = theta * stretch ** (size / (size - 2))
        return rotary_frequencies(base, size), 1.0


@register("yarn")
@dataclass(frozen=True)
class YarnScaling(ScalingConfig):
    """Peng et al. 2023: slow frequencies are interpolated, fast ones unchanged, with a ramp in between, and the softmax
    is sharper.
    """

    factor: float = 1.0  # target context divided by the original one
    original: int = 2048  # context of training
    beta_fast: float = 32.0  # rotations within the original context above which a frequency stays unchanged
    beta_slow: float = 1.0  # rotations below which a frequency is divided by factor
    attention_factor: float | None = None  # factor on sines and cosines; none: the paper's formula
    truncate: bool = True  # whether the ends of the ramp are rounded to whole features

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        size = 2 * frequencies.numel()

        def feature(rotations: float) -> float:
            return size * math.log(self.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low, high = feature(self.beta_fast), feature(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        steps = torch.arange(size // 2, dtype=torch.float64, device="cpu")
        ramp = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
        mixed = frequencies / self.factor * ramp + frequencies * (1 - ramp)
        sharpen = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
        return mixed, sharpen if self.attention_factor is None else self.attention_factor


@register("llama3")
@dataclass(frozen=True)
class Llama3Scaling(ScalingConfig):
    """Llama 3.1: wavelengths above original / low are multiplied by `factor`, those below original / high stay
    unchanged, with a ramp in between.
    """

    factor: float = 8.0  # factor on long wavelengths
    original: int = 8192  # context of training
    low: float = 1.0  # original / low is the shortest fully scaled wavelength
    high: float = 4.0  # original / high is the longest unchanged wavelength

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        wavelengths = 2 * math.pi / frequencies
        smooth = ((self.original / wavelengths - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * ((1 - smooth) / self.factor + smooth), 1.0


@register("longrope")
@dataclass(frozen=True)
class LongRopeScaling(ScalingConfig):
    """Ding et al. 2024: each frequency is divided by its own factor, from `long` if `length` exceeds `original`.

    `factor` sharpens the softmax in both cases, unless `attention_factor` is set.
    """

    short: tuple[float, ...] = ()  # divisor of each frequency up to the original context
    long: tuple[float, ...] = ()  # divisor of each frequency beyond it
    original: int = 4096  # context of training
    length: int | None = None  # longest sequence to process; none: original
    attention_factor: float | None = None  # factor on sines and cosines; none: the paper's formula
    factor: float | None = None  # longest context divided by the original one; none: length / original

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        length = self.length or self.original
        factors = self.long if length > self.original else self.short
        if len(factors) != frequencies.numel():
            raise ConfigError(
                f"longrope has {len(factors)} factors; set one for each of {frequencies.numel()} frequencies"
            )
        stretch = max(self.factor or length / self.original, 1.0)
        sharpen = math.sqrt(1 + math.log(stretch) / math.log(self.original))
        divisors = torch.tensor(factors, dtype=torch.float64, device="cpu")
        return frequencies / divisors, sharpen if self.attention_factor is None else self.attention_factor
