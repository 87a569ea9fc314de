"""Positions: rotations of queries and keys, with the scalings that stretch them, and what is added to embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError
from headway.layout import Layout

Frequencies = Float[Tensor, "R"]


@family
@dataclass(frozen=True)
class ScalingConfig:
    """A change of the rotary frequencies, fixed for a model: no later token changes how an earlier one is turned."""

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        """The changed frequencies (radians a position) and a factor on cosine and sine."""
        raise NotImplementedError


@register("linear")
@dataclass(frozen=True)
class LinearScaling(ScalingConfig):
    """Chen et al. 2023: positions divided by `factor`."""

    factor: float = 1.0  # what positions are divided by

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        return frequencies / self.factor, 1.0


@register("dynamic")
@dataclass(frozen=True)
class DynamicScaling(ScalingConfig):
    """NTK-aware scaling: theta grows with `length`, the sequence to be served, beyond the `original` context."""

    factor: float = 1.0  # how many times longer the context is to be
    original: int = 2048  # context of training
    length: int | None = None  # longest sequence to be served; none: original

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        size = 2 * frequencies.numel()
        length = max(self.length or self.original, self.original)
        stretch = self.factor * length / self.original - (self.factor - 1)
        base = theta * stretch ** (size / (size - 2))
        return _frequencies(base, size), 1.0


@register("yarn")
@dataclass(frozen=True)
class YarnScaling(ScalingConfig):
    """Peng et al. 2023: slow frequencies interpolated, fast ones kept, a ramp between, and a sharper softmax."""

    factor: float = 1.0  # how many times longer the context is to be
    original: int = 2048  # context of training
    beta_fast: float = 32.0  # turns within the original context from which a frequency is kept
    beta_slow: float = 1.0  # turns below which a frequency is divided by factor
    attention_factor: float | None = None  # what sines and cosines are multiplied by; none: by the paper's rule
    truncate: bool = True  # whether the ends of the ramp are whole features

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
    """Llama 3.1: wavelengths beyond original / low divided by `factor`, those below original / high kept, a ramp
    between.
    """

    factor: float = 8.0  # what long wavelengths are multiplied by
    original: int = 8192  # context of training
    low: float = 1.0  # original / low is the shortest wavelength that is scaled in full
    high: float = 4.0  # original / high is the longest wavelength that is kept

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        wavelengths = 2 * math.pi / frequencies
        smooth = ((self.original / wavelengths - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * ((1 - smooth) / self.factor + smooth), 1.0


@register("longrope")
@dataclass(frozen=True)
class LongRopeScaling(ScalingConfig):
    """Ding et al. 2024: each frequency divided by a factor of its own, `long` where `length` exceeds `original`.

    `length` is the longest sequence to be served. `factor`, the longest context there is over the `original` one (None:
    `length` over it), sharpens the softmax whichever factors are used, unless `attention_factor` says how much.
    """

    short: tuple[float, ...] = ()  # divisor of each frequency up to the original context
    long: tuple[float, ...] = ()  # divisor of each frequency beyond it
    original: int = 4096  # context of training
    length: int | None = None
    attention_factor: float | None = None  # what sines and cosines are multiplied by; none: by the paper's rule
    factor: float | None = None  # longest context over the original one

    def apply(self, frequencies: Frequencies, theta: float) -> tuple[Frequencies, float]:
        length = self.length or self.original
        factors = self.long if length > self.original else self.short
        if len(factors) != frequencies.numel():
            raise ConfigError(
                f"longrope has {len(factors)} factors; give one for each of {frequencies.numel()} frequencies"
            )
        stretch = max(self.factor or length / self.original, 1.0)
        sharpen = math.sqrt(1 + math.log(stretch) / math.log(self.original))
        divisors = torch.tensor(factors, dtype=torch.float64, device="cpu")
        return frequencies / divisors, sharpen if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary position embedding over the first `fraction` of each head's features."""

    theta: float = 10000.0  # base of the wavelengths
    fraction: float = 1.0  # share of a head's features that is turned
    scaling: ScalingConfig | None = None  # for contexts longer than those of training


class Angles(NamedTuple):
    cos: Float[Tensor, "#B T 1 R"]
    sin: Float[Tensor, "#B T 1 R"]


def _frequencies(theta: float, size: int) -> Frequencies:
    # On the CPU wherever the model is made: torch loads its compiler for this on the meta device, which takes seconds.
    return theta ** (-torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size)


class Rotary:
    """Angles of rotary positions: position x theta^(-2i / R) (Su et al. 2021, equation 15), made once for all
    layers.
    """

    def __init__(self, config: RotaryConfig, head_size: int) -> None:
        size = int(head_size * config.fraction)
        if size < 2 or size % 2:
            raise ConfigError(f"rotary positions turn {size} features of a head; choose a head size that makes it even")
        self.config = config
        self.size = size
        frequencies = _frequencies(config.theta, size)
        self.factor = 1.0
        if config.scaling is not None:
            frequencies, self.factor = config.scaling.apply(frequencies, config.theta)
        self.frequencies = frequencies

    def angles(self, layout: Layout, like: Tensor) -> Angles:
        return layout.derived(("rotary", self.config, self.size, like.dtype), lambda: self._angles(layout, like))

    def _angles(self, layout: Layout, like: Tensor) -> Angles:
        positions = layout.positions[:1] if layout.dense else layout.positions
        turns = positions.clamp(min=0)[:, :, None, None] * self.frequencies.to(like.device)
        return Angles(*((part * self.factor).to(like.dtype) for part in (turns.cos(), turns.sin())))


@family
@dataclass(frozen=True)
class PositionsConfig:
    """A vector for each position, added to the embedding."""

    def build(self, width: int, context: int | None) -> nn.Module:
        raise NotImplementedError


@register("sinusoidal")
@dataclass(frozen=True)
class SinusoidalConfig(PositionsConfig):
    """`interleaved` puts sine and cosine in turn, as in 2017; else all sines stand before all cosines."""

    theta: float = 10000.0  # base of the wavelengths
    interleaved: bool = True

    def build(self, width: int, context: int | None) -> nn.Module:
        if width % 2:
            raise ConfigError(f"width {width} is odd; sinusoidal positions need an even width")
        return Sinusoidal(self, width)


class Sinusoidal(nn.Module):
    """Vaswani et al. 2017, section 3.5: sin and cos of position / theta^(2i / D)."""

    def __init__(self, config: SinusoidalConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        return layout.derived(("sinusoidal", self.config, self.width, like.dtype), lambda: self._encode(layout, like))

    def _encode(self, layout: Layout, like: Tensor) -> Tensor:
        positions = layout.positions[:1] if layout.dense else layout.positions
        steps = torch.arange(0, self.width, 2, device=like.device, dtype=torch.float64)
        rates = torch.exp(steps * (-math.log(self.config.theta) / self.width))
        angles = positions.clamp(min=0)[..., None] * rates
        parts = (angles.sin(), angles.cos())
        both = torch.stack(parts, dim=-1).flatten(-2) if self.config.interleaved else torch.cat(parts, dim=-1)
        return both.to(like.dtype)


@register("learned")
@dataclass(frozen=True)
class LearnedConfig(PositionsConfig):
    """A table with a row for each position of the context; `offset` leaves rows unused before position 0 (RoBERTa)."""

    offset: int = 0

    def build(self, width: int, context: int | None) -> nn.Module:
        if context is None:
            raise ConfigError("learned positions need a context; set model.context to the longest input, as in 1024")
        return Learned(self, width, context)


class Learned(nn.Module):
    """Gehring et al. 2017: a trained vector for each position."""

    def __init__(self, config: LearnedConfig, width: int, context: int) -> None:
        super().__init__()
        self.offset = config.offset
        self.table = nn.Parameter(torch.empty(context + config.offset, width))

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        positions = layout.positions[:1] if layout.dense else layout.positions
        return nn.functional.embedding(positions.clamp(min=0) + self.offset, self.table)


@register("sinusoid_table")
@dataclass(frozen=True)
class SinusoidTableConfig(PositionsConfig):
    """Sinusoids as a table that is not trained and goes with the weights, as Whisper's encoder has them: all sines
    before all cosines, their rates from 1 to 1 / theta, both included.
    """

    theta: float = 10000.0  # the slowest rate is 1 / theta

    def build(self, width: int, context: int | None) -> nn.Module:
        if context is None:
            raise ConfigError(
                "a table of positions needs a context; set model.context to the longest input, as in 1500"
            )
        if width % 2 or width < 4:
            raise ConfigError(f"width {width} is not an even number from 4 on; a table of sinusoids needs one")
        return SinusoidTable(self, width, context)


class SinusoidTable(nn.Module):
    """Radford et al. 2022, section 2.2."""

    table: Tensor

    def __init__(self, config: SinusoidTableConfig, width: int, context: int) -> None:
        super().__init__()
        half = width // 2
        # In 32 bits from the start, as the published tables are: the angles of 64 bits differ from them by 1e-4.
        rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(config.theta) / (half - 1)))
        angles = torch.arange(context, dtype=torch.float32)[:, None] * rates
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        positions = layout.positions[:1] if layout.dense else layout.positions
        return nn.functional.embedding(positions.clamp(min=0), self.table)


@register("grids")
@dataclass(frozen=True)
class GridsConfig(PositionsConfig):
    """A learned vector for each of the first `front` positions; then, for each grid of (rows, columns), sinusoids of
    both for each of its places, row by row. There are no positions beyond these.
    """

    front: int = 0  # learned vectors before the grids
    grids: tuple[tuple[int, int], ...] = ()  # rows and columns of each
    theta: float = 10000.0  # base of the rates

    @property
    def length(self) -> int:
        return self.front + sum(rows * columns for rows, columns in self.grids)

    def build(self, width: int, context: int | None) -> nn.Module:
        if self.grids and width % 4:
            raise ConfigError(f"width {width} is no multiple of 4; sinusoids of rows and columns need one")
        return Grids(self, width)


class Grids(nn.Module):
    """Carion et al. 2020 (DETR), section A.4: half of a vector says the row, half the column, both counted from 1 and
    scaled so that the last is at 2 pi.
    """

    def __init__(self, config: GridsConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.table = nn.Parameter(torch.empty(config.front, width))

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        places = [self._grid(*grid, self.table) for grid in self.config.grids]
        positions = layout.positions[:1] if layout.dense else layout.positions
        return nn.functional.embedding(positions.clamp(min=0), torch.cat([self.table, *places]))

    def _grid(self, rows: int, columns: int, like: Tensor) -> Float[Tensor, "P D"]:
        down, across = (self._line(count, like.device) for count in (rows, columns))
        whole = torch.cat([down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)], -1)
        return whole.flatten(0, 1).to(like.dtype)

    def _line(self, count: int, device: torch.device) -> Float[Tensor, "N E"]:
        half = self.width // 2
        steps = torch.arange(0, half, 2, device=device, dtype=torch.float64)
        angles = torch.arange(1, count + 1, device=device, dtype=torch.float64) / count * (2 * math.pi)
        turned = angles[:, None] * torch.exp(steps * (-math.log(self.config.theta) / half))
        return torch.stack((turned.sin(), turned.cos()), -1).flatten(1)
