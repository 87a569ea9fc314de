"""Log-mel frames, as Whisper hears them (Radford et al. 2022, section 2.2)."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.resample import RATE
from headway.errors import UserError

WINDOW, HOP = 400, 160  # samples: 25 ms, and a frame each 10 ms
SHORTEST = WINDOW // 2 + 1  # samples that can be reflected at both ends
_LINEAR, _KNEE = 200 / 3, 1000.0  # Hz a mel below the knee, where mels turn from linear to logarithmic
_LOG_STEP = math.log(6.4) / 27  # of the logarithm, a mel above it
_FLOOR, _DEPTH = 1e-10, 8.0  # power that counts as silence; decades below the loudest that are heard


def log_mel(sound: Float[Tensor, "*B N"], bands: int = 80) -> Float[Tensor, "*B T bands"]:
    """T = N / 160 frames of sounds of 16,000 samples a second, each scaled by its own loudest frame.

    Whisper's windows are of 30 s, shorter sounds followed by silence (`pad`). UserError for a sound too short for a
    frame, or with samples that are no numbers.
    """
    if not sound.is_floating_point():
        raise UserError(f"the samples are {sound.dtype}; give floating-point numbers between -1 and 1")
    if sound.shape[-1] < SHORTEST:
        raise UserError(
            f"a sound of {sound.shape[-1]} samples is shorter than one frame ({SHORTEST}); give a longer one, or pad it"
        )
    if not bool(sound.isfinite().all()):
        raise UserError("the sound has samples that are infinite or no numbers; make the file again")
    around = F.pad(sound[..., None, :], (WINDOW // 2, WINDOW // 2), mode="reflect")[..., 0, :]
    frames = sound.shape[-1] // HOP
    found = decades(around[..., : (frames - 1) * HOP + WINDOW], bands)
    return scaled(found, found.amax(dim=(-2, -1), keepdim=True))


def decades(around: Float[Tensor, "*B N"], bands: int) -> Float[Tensor, "*B T bands"]:
    """The logarithms of the power in each band, of frames that begin every 160 samples: T = (N - 400) / 160 + 1."""
    hann = torch.hann_window(WINDOW).to(around)
    spectrum = torch.stft(around, WINDOW, HOP, window=hann, center=False, return_complex=True)
    mel = torch.matmul(mel_filters(bands).to(around), spectrum.abs().square())
    return mel.clamp_min(_FLOOR).log10().transpose(-1, -2)


def scaled(decades: Float[Tensor, "*B T bands"], loudest: Tensor | float) -> Float[Tensor, "*B T bands"]:
    """Frames as a model hears them, given the largest logarithm of the sound."""
    lowest = torch.as_tensor(loudest - _DEPTH).to(decades)
    return ((decades.maximum(lowest) + 4.0) / 4.0).contiguous()


@cache
def mel_filters(bands: int) -> Float[Tensor, "bands F"]:
    """Triangles of equal area, evenly spaced in mels between 0 Hz and half the rate, over the F = 201 frequencies of a
    frame (Slaney 1998, Auditory Toolbox).
    """
    if bands < 1:
        raise UserError(f"bands is {bands}; give a whole number from 1 on, as in 80")
    top = _mels(RATE / 2)
    edges = torch.tensor([_hertz(top * i / (bands + 1)) for i in range(bands + 2)], dtype=torch.float64)
    frequencies = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * (RATE / WINDOW)
    low, middle, high = (edges[i : bands + i, None] for i in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    triangles = rising.minimum(falling).clamp_min(0)
    # Rounded twice, as the published filters were.
    return (triangles.float().double() * (2 / (high - low))).float()


def _mels(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + math.log(hertz / _KNEE) / _LOG_STEP


def _hertz(mels: float) -> float:
    knee = _KNEE / _LINEAR
    return mels * _LINEAR if mels < knee else _KNEE * math.exp((mels - knee) * _LOG_STEP)


def pad(sound: Float[Tensor, "N"], seconds: float = 30.0) -> Float[Tensor, "M"]:
    """The sound with silence after it. UserError for one of nothing, and for a longer one: nothing is cut unasked."""
    if not len(sound):
        raise UserError("a sound of 0 samples is empty; leave it out")
    length = round(seconds * RATE)
    if len(sound) > length:
        raise UserError(
            f"a sound of {len(sound) / RATE:.2f} s is longer than {seconds:g} s; cut it into pieces that are not"
        )
    return F.pad(sound, (0, length - len(sound)))
