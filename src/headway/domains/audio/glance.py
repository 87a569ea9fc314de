"""How a sound is at a first hearing, in a few numbers, so that one unlike all others can be told."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.mel import HOP, SHORTEST, log_mel

_BANDS, _PARTS = 40, 8  # mel bands, and the parts of neighbouring ones whose means are taken
_LEVELS = 6  # of loudness, whose shares are counted
_DEEP = 2.0  # how far below its loudest a frame can be: 8 decades of power, in the units of the frames


def glance(sound: Float[Tensor, "N"]) -> Float[np.ndarray, "F"]:
    """A sound of at least a frame, whatever its loudness, in numbers from 0 to 1: for each of 8 parts of its spectrum
    the mean, the deviation and the mean difference over time; shares of levels; the mean difference from band to band,
    and the contrast, which is 0 where nothing sounds or all sounds alike.
    """
    frames = log_mel(F.pad(sound, (0, max(0, SHORTEST - len(sound)))), _BANDS)
    heard = ((frames - frames.max() + _DEEP) / _DEEP).numpy().astype(np.float64)
    parts = heard.reshape(len(heard), _PARTS, -1).mean(2)
    moves = np.abs(np.diff(parts, axis=0, append=parts[-1:])).mean(0)
    levels = np.histogram(heard, _LEVELS, (0, 1))[0] / heard.size
    across = np.abs(np.diff(heard, axis=1)).mean()
    return np.array([*parts.mean(0), *parts.std(0), *moves, *levels, across, heard.std()])


def middle_of(sound: Float[Tensor, "N"], frames: int) -> Float[Tensor, "M"]:
    """What of a sound stands in a window of so many frames; all of one that fits."""
    spare = max(0, len(sound) - frames * HOP)
    return sound[spare // 2 : len(sound) - (spare - spare // 2)]
