"""Random changes of recordings in training: position, loudness, speed, noise, vocal tract, timbre and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.config_kinds import deferred_check
from headway.data.shuffling import epoch_seed
from headway.domains.audio.mel import HOP, RATE, resample, warped_bands
from headway.errors import ConfigError

_MIN_POWER = 1e-12  # minimum signal power for adding relative noise
_EQUALIZER_POINTS = 6  # evenly spaced bands at which the equalizer samples its gain
_DECIBELS = 40  # decibels per unit of a frame: ten times the logarithm of the power, which is divided by four


@deferred_check
@dataclass(frozen=True)
class SoundAugmentConfig:
    """Audio augmentation. A number of 0, speeds of (1.0,) and unset `noise` turn an option off.

    `warp`, `equalizer` and `noise` make other voices and microphones of those in the data. `warp`: maximum change of
    the vocal tract length, as a share: frequencies are multiplied by a factor between 1 - warp and 1 + warp (Jaitly and
    Hinton 2013, equation 1). `equalizer`: maximum gain in either direction, in decibels, of a smooth random filter.
    `shift`: maximum shift in either direction within the window, in seconds. `gain`: maximum change in loudness, in
    decibels. `speeds`: factors, one of which is sampled; tempo and pitch change together (Ko et al. 2015: 0.9, 1, 1.1).
    `noise`: range of signal-to-noise ratios for white noise, in decibels. `time_masks` spans of at most `time_width`
    seconds and `band_masks` groups of at most `band_width` bands are replaced by the mean of the spectrogram
    (SpecAugment, Park et al. 2019, without time warping, which they found to matter least).
    """

    shift: float = 0.0
    gain: float = 0.0
    speeds: tuple[float, ...] = (1.0,)
    noise: tuple[float, float] | None = None
    warp: float = 0.0  # maximum change of the vocal tract length, as a share
    equalizer: float = 0.0  # maximum gain of a smooth random filter, in decibels
    time_masks: int = 0  # number of masked time spans
    time_width: float = 0.1  # maximum seconds per span
    band_masks: int = 0  # number of masked groups of bands
    band_width: int = 10  # maximum bands per group

    def __post_init__(self) -> None:
        for name in ("shift", "gain", "equalizer", "time_masks", "time_width", "band_masks", "band_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; choose 0 (off) or more")
        if not 0 <= self.warp <= 0.5:
            raise ConfigError(f"augment.warp is {self.warp}; choose a share from 0 (off) to 0.5, such as 0.1")
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ConfigError(f"augment.speeds is {self.speeds}; choose factors from 0.5 to 2, such as 0.9, 1 and 1.1")
        if self.noise is not None and self.noise[0] > self.noise[1]:
            raise ConfigError(f"augment.noise is {self.noise}; the first number must not exceed the second")


def augmentation_rng(seed: int, position: int) -> np.random.Generator:
    """The random generator for the sample at a position in the stream."""
    return np.random.Generator(np.random.Philox(key=epoch_seed(seed, position)))


def change_speed_and_gain(
    sound: Float[Tensor, "N"], config: SoundAugmentConfig, rng: np.random.Generator
) -> Float[Tensor, "M"]:
    """The audio at a different speed and gain."""
    speed = config.speeds[int(rng.integers(len(config.speeds)))]
    sound = resample(sound, round(RATE * speed)) if speed != 1 else sound
    return sound * 10 ** (rng.uniform(-config.gain, config.gain) / 20) if config.gain else sound


def add_noise(
    window: Float[Tensor, "N"], samples: int, config: SoundAugmentConfig, rng: np.random.Generator
) -> Float[Tensor, "N"]:
    """A window with white noise at a signal-to-noise ratio in decibels. The signal is its sound of so many `samples`,
    without the silence around it.
    """
    if config.noise is None:
        return window
    energy = float(window.square().sum()) / max(1, min(samples, len(window)))
    power = max(energy, _MIN_POWER) * 10 ** (-rng.uniform(*config.noise) / 10)
    return window + torch.from_numpy(rng.standard_normal(len(window), dtype=np.float32)) * power**0.5


def fit_to_window(
    sound: Float[Tensor, "N"], length: int, shift: float = 0.0, rng: np.random.Generator | None = None
) -> Float[Tensor, "length"]:
    """The audio in a window of `length` samples, padded with silence or cropped.

    Without `rng` it is centred; with it, it is shifted by up to `shift` seconds, and longer audio is cropped at random.
    """
    space = length - len(sound)
    start = space // 2
    if rng is not None and space < 0:
        start = -int(rng.integers(-space + 1))
    elif rng is not None and shift:
        max_shift = round(shift * RATE)
        start = min(max(0, start + int(rng.integers(-max_shift, max_shift + 1))), space)
    return F.pad(sound, (start, space - start))


def delay(
    sound: Float[Tensor, "N"], length: int, config: SoundAugmentConfig, rng: np.random.Generator
) -> Float[Tensor, "M"]:
    """The audio after up to `shift` seconds of silence, M <= `length` samples in total."""
    if not config.shift:
        return sound
    space = length - len(sound)
    return F.pad(sound, (int(rng.integers(min(space, round(config.shift * RATE)) + 1)), 0))


def augment_spectrogram(
    frames: Float[Tensor, "T M"], config: SoundAugmentConfig, rng: np.random.Generator
) -> Float[Tensor, "T M"]:
    """A spectrogram of another vocal tract, with another timbre and with masked time spans and groups of bands."""
    bands, floor = frames.shape[1], frames.amin()
    if config.warp:
        frames = frames @ warped_bands(bands, rng.uniform(1 - config.warp, 1 + config.warp)).T
    if config.equalizer:
        points = torch.from_numpy(rng.uniform(-config.equalizer, config.equalizer, (1, 1, _EQUALIZER_POINTS)))
        gains = F.interpolate(points.to(frames), bands, mode="linear", align_corners=True)[0, 0] / _DECIBELS
        frames = torch.where(frames > floor, (frames + gains).maximum(floor), frames)  # a filter keeps silence
    return mask_spectrogram(frames, config, rng)


def mask_spectrogram(
    frames: Float[Tensor, "T M"], config: SoundAugmentConfig, rng: np.random.Generator
) -> Float[Tensor, "T M"]:
    """A spectrogram with masked time spans and groups of bands."""
    mean = frames.mean()
    frames = frames.clone()
    max_frames = round(config.time_width * RATE / HOP)
    for axis, count, max_width in ((0, config.time_masks, max_frames), (1, config.band_masks, config.band_width)):
        size = frames.shape[axis]
        for _ in range(count):
            width = min(int(rng.integers(max_width + 1)), size)
            start = int(rng.integers(size - width + 1))
            frames.narrow(axis, start, width).fill_(mean)
    return frames
