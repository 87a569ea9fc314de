"""Changes of sounds that leave what they are: each a pure function of a seed and a place in the stream of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.config import checked
from headway.data.order import epoch_seed
from headway.domains.audio.mel import HOP, RATE, resample
from headway.errors import ConfigError

_QUIET = 1e-12  # power of a sound that noise of some decibels below it would not be heard beside


@checked
@dataclass(frozen=True)
class SoundAugmentConfig:
    """What training changes. All of it is off where a number is 0, `speeds` is (1.0,) and `noise` is none.

    `shift`: seconds that a sound is moved at most, to either side, within its window. `gain`: decibels louder or
    softer at most. `speeds`: one of them is drawn; time and pitch change together (Ko et al. 2015: 0.9, 1, 1.1).
    `noise`: white noise so many decibels below the sound, drawn between the two. `time_masks` stretches of at most
    `time_width` seconds and `band_masks` of at most `band_width` bands take on the mean of the spectrogram (Park et al.
    2019, SpecAugment, without its warping of time, which they found to matter least).
    """

    shift: float = 0.0
    gain: float = 0.0
    speeds: tuple[float, ...] = (1.0,)
    noise: tuple[float, float] | None = None
    time_masks: int = 0  # stretches of time that are masked
    time_width: float = 0.1  # seconds of one at most
    band_masks: int = 0  # groups of bands that are masked
    band_width: int = 10  # bands of one at most

    def __post_init__(self) -> None:
        for name in ("shift", "gain", "time_masks", "time_width", "band_masks", "band_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; give 0 (none) or more")
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ConfigError(
                f"augment.speeds are {self.speeds}; give factors between 0.5 and 2, such as 0.9, 1 and 1.1"
            )
        if self.noise is not None and self.noise[0] > self.noise[1]:
            raise ConfigError(f"augment.noise is {self.noise}; give the lower number of decibels first")


def chance(seed: int, place: int) -> np.random.Generator:
    """The source of all that is drawn for the sample at a place of the stream."""
    return np.random.Generator(np.random.Philox(key=epoch_seed(seed, place)))


def varied(sound: Float[Tensor, "N"], config: SoundAugmentConfig, draw: np.random.Generator) -> Float[Tensor, "M"]:
    """A sound at another speed and loudness."""
    speed = config.speeds[int(draw.integers(len(config.speeds)))]
    sound = resample(sound, round(RATE * speed)) if speed != 1 else sound
    return sound * 10 ** (draw.uniform(-config.gain, config.gain) / 20) if config.gain else sound


def noisy(sound: Float[Tensor, "N"], config: SoundAugmentConfig, draw: np.random.Generator) -> Float[Tensor, "N"]:
    """A sound with noise so many decibels below it as it is loud in the mean."""
    if config.noise is None:
        return sound
    power = max(float(sound.square().mean()), _QUIET) * 10 ** (-draw.uniform(*config.noise) / 10)
    return sound + torch.from_numpy(draw.standard_normal(len(sound), dtype=np.float32)) * power**0.5


def placed(
    sound: Float[Tensor, "N"], length: int, shift: float = 0.0, draw: np.random.Generator | None = None
) -> Float[Tensor, "length"]:
    """A sound within a window of `length` samples, silence around it; of a longer one, what fits.

    Without `draw` it is in the middle, or its middle is; with it, up to `shift` seconds beside, and any part of a
    longer one.
    """
    room = length - len(sound)
    start = room // 2
    if draw is not None and room < 0:
        start = -int(draw.integers(-room + 1))
    elif draw is not None and shift:
        most = round(shift * RATE)
        start = min(max(0, start + int(draw.integers(-most, most + 1))), room)
    return F.pad(sound, (start, room - start))


def delayed(
    sound: Float[Tensor, "N"], length: int, config: SoundAugmentConfig, draw: np.random.Generator
) -> Float[Tensor, "M"]:
    """A sound after up to `shift` seconds of silence, M <= `length` samples in all."""
    if not config.shift:
        return sound
    room = length - len(sound)
    return F.pad(sound, (int(draw.integers(min(room, round(config.shift * RATE)) + 1)), 0))


def masked(frames: Float[Tensor, "T M"], config: SoundAugmentConfig, draw: np.random.Generator) -> Float[Tensor, "T M"]:
    """A spectrogram with stretches of time and of bands that tell nothing."""
    mean = frames.mean()
    frames = frames.clone()
    wide = round(config.time_width * RATE / HOP)
    for axis, count, most in ((0, config.time_masks, wide), (1, config.band_masks, config.band_width)):
        size = frames.shape[axis]
        for _ in range(count):
            width = min(int(draw.integers(most + 1)), size)
            start = int(draw.integers(size - width + 1))
            frames.narrow(axis, start, width).fill_(mean)
    return frames
