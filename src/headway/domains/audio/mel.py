"""Resampling to 16 kHz, and log-mel frames."""

from __future__ import annotations

import math
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.errors import UserError

RATE = 16000  # samples per second of all model inputs
_MIN_RATE, _MAX_RATE = 1000, 768_000
# A windowed sinc with 48 zero crossings on each side. A Kaiser window with this beta has a stopband below -80 dB and a
# transition within 10.5 % below half the lower rate: what the lower rate cannot represent is removed, not aliased.
_CROSSINGS, _BETA, _PASSBAND = 48, 7.857, 0.947
_MAX_COEFFICIENTS = 1 << 23  # coefficients of all filters of a rate
_MAX_MATRIX = 1 << 18  # coefficients of a filter matrix; more are applied one by one


def resample(sound: Float[Tensor, "N"], rate: int, wanted: int = RATE) -> Float[Tensor, "M"]:
    """Resample audio to `wanted` Hz: M = N wanted / rate, rounded up (polyphase, Crochiere and Rabiner 1983).

    Each phase between the old samples has its own filter. UserError for an implausible sample rate.
    """
    resampler = Resampler(rate, wanted)
    return sound if rate == wanted else torch.cat([resampler.push(sound), resampler.finish()])


class Resampler:
    """`resample` for audio in blocks; the concatenated outputs equal those for the complete audio."""

    def __init__(self, rate: int, wanted: int = RATE) -> None:
        for value in (rate, wanted):
            if not _MIN_RATE <= value <= _MAX_RATE:
                raise UserError(
                    f"a sample rate of {value} Hz is not between {_MIN_RATE} and {_MAX_RATE}; pass the true rate"
                )
        divisor = math.gcd(rate, wanted)
        self._old, self._new = rate // divisor, wanted // divisor
        taps = 2 * _half_width(self._old, self._new)
        if rate != wanted and self._new * taps > _MAX_COEFFICIENTS:
            raise UserError(
                f"resampling {rate} to {wanted} Hz needs {self._new:,} filters of {taps:,} coefficients, too many; "
                "pass the true rate, or convert the audio first: ffmpeg -i FILE -ar 16000 NEW.wav"
            )
        self._filters = None if rate == wanted else _filters(self._old, self._new)
        self._buffer = torch.zeros(0 if self._filters is None else self._filters.shape[1] // 2 - 1)
        self._samples_in = self._samples_out = 0  # samples in, and out

    def push(self, sound: Float[Tensor, "N"]) -> Float[Tensor, "M"]:
        """The output that is final after these samples."""
        self._samples_in += len(sound)
        if self._filters is None:
            return sound
        self._buffer = torch.cat([self._buffer.to(sound), sound])
        reach = self._filters.shape[1] + (self._new - 1) * self._old // self._new
        return self._take(max(0, (len(self._buffer) - reach) // self._old + 1) if len(self._buffer) >= reach else 0)

    def finish(self) -> Float[Tensor, "M"]:
        """The remaining output."""
        if self._filters is None:
            return self._buffer
        remaining = -(-self._samples_in * self._new // self._old) - self._samples_out
        groups = -(-remaining // self._new)
        reach = self._filters.shape[1] + groups * self._old
        self._buffer = F.pad(self._buffer, (0, max(0, reach - len(self._buffer))))
        return self._take(groups)[:remaining]

    def _take(self, groups: int) -> Float[Tensor, "M"]:
        """The next `groups` samples of each phase."""
        assert self._filters is not None
        taps = self._filters.shape[1]
        if self._new * (taps + self._old) <= _MAX_MATRIX:
            # All phases as one matrix product, with zeros outside of a filter: several times as fast.
            matrix = _matrix(self._old, self._new).to(self._buffer)
            out = self._buffer.new_empty(0)
            if groups:
                windows = self._buffer.unfold(0, matrix.shape[1], self._old)[:groups]
                out = (windows @ matrix.T).flatten()
        else:
            out = self._buffer.new_empty(groups * self._new)
            for phase in range(self._new if groups else 0):
                first = phase * self._old // self._new
                samples = self._buffer[first : first + (groups - 1) * self._old + taps]
                filters = self._filters[None, None, phase].to(samples)
                out[phase :: self._new] = F.conv1d(samples[None, None], filters, stride=self._old)[0, 0]
        self._buffer = self._buffer[groups * self._old :]
        self._samples_out += len(out)
        return out


@lru_cache(maxsize=8)
def _matrix(old: int, new: int) -> Float[Tensor, "P span"]:
    """The filters of all phases side by side, each at its first sample of a group of `old`."""
    filters = _filters(old, new)
    taps = filters.shape[1]
    matrix = torch.zeros(new, taps + (new - 1) * old // new)
    for phase, row in enumerate(matrix):
        row[phase * old // new :][:taps] = filters[phase]
    return matrix


def _half_width(old: int, new: int) -> int:
    """Old samples on each side of a filter."""
    return math.ceil(_CROSSINGS / (min(1.0, new / old) * _PASSBAND))


@lru_cache(maxsize=8)
def _filters(old: int, new: int) -> Float[Tensor, "P taps"]:
    """The filter of each phase p, whose output is (p old / new) mod 1 after an old sample."""
    cutoff = min(1.0, new / old) * _PASSBAND  # of half the old rate
    reach = _half_width(old, new)
    phase_offset = torch.arange(new, dtype=torch.float64) * old % new / new
    distance = phase_offset[:, None] - torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    inside = (1 - (distance * cutoff / _CROSSINGS).square()).clamp_min(0).sqrt()
    window = torch.where(inside > 0, torch.special.i0(_BETA * inside), 0.0)
    filters = torch.sinc(distance * cutoff) * window
    return (filters / filters.sum(1, keepdim=True)).float()


WINDOW, HOP = 400, 160  # samples: 25 ms windows every 10 ms
MIN_SAMPLES = WINDOW // 2 + 1  # samples that can be reflected at both ends
_LINEAR, _KNEE = 200 / 3, 1000.0  # Hz per mel below the knee, where mels change from linear to logarithmic
_LOG_STEP = math.log(6.4) / 27  # of the logarithm, per mel above it
_FLOOR, _DYNAMIC_RANGE = 1e-10, 8.0  # power that counts as silence; dynamic range in decades


def log_mel(sound: Float[Tensor, "*B N"], bands: int = 80) -> Float[Tensor, "*B T bands"]:
    """T = N / 160 frames of audio at 16 kHz, each recording scaled by its own loudest frame.

    Whisper's windows are 30 s long; shorter audio is padded with silence (`pad`). UserError for audio shorter than a
    frame, or with NaN or infinite samples.
    """
    if not sound.is_floating_point():
        raise UserError(f"the samples are {sound.dtype}; pass floating-point numbers between -1 and 1")
    if sound.shape[-1] < MIN_SAMPLES:
        raise UserError(
            f"the audio has {sound.shape[-1]} samples, less than one frame ({MIN_SAMPLES}); use longer audio, or pad it"
        )
    if not bool(sound.isfinite().all()):
        raise UserError("the audio has NaN or infinite samples; recreate the file")
    padded = F.pad(sound[..., None, :], (WINDOW // 2, WINDOW // 2), mode="reflect")[..., 0, :]
    frames = sound.shape[-1] // HOP
    log_powers = log_power(padded[..., : (frames - 1) * HOP + WINDOW], bands)
    return scale_frames(log_powers, log_powers.amax(dim=(-2, -1), keepdim=True))


def log_power(samples: Float[Tensor, "*B N"], bands: int) -> Float[Tensor, "*B T bands"]:
    """Log10 of the power in each band, for frames that start every 160 samples: T = (N - 400) / 160 + 1."""
    hann = torch.hann_window(WINDOW).to(samples)
    spectrum = torch.stft(samples, WINDOW, HOP, window=hann, center=False, return_complex=True)
    mel = torch.matmul(mel_filters(bands).to(samples), spectrum.abs().square())
    return mel.clamp_min(_FLOOR).log10().transpose(-1, -2)


def scale_frames(log_powers: Float[Tensor, "*B T bands"], maximum: Tensor | float) -> Float[Tensor, "*B T bands"]:
    """Model inputs, given the maximum log power of the audio."""
    lowest = torch.as_tensor(maximum - _DYNAMIC_RANGE).to(log_powers)
    return ((log_powers.maximum(lowest) + 4.0) / 4.0).contiguous()


@cache
def mel_filters(bands: int) -> Float[Tensor, "bands F"]:
    """Triangles of equal area, evenly spaced in mels from 0 Hz to half the rate, over the F = 201 frequencies of a
    frame (Slaney 1998, Auditory Toolbox).
    """
    if bands < 1:
        raise UserError(f"bands is {bands}; use an integer of at least 1, such as 80")
    edges = _band_edges(bands)
    frequencies = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * (RATE / WINDOW)
    low, middle, high = (edges[i : bands + i, None] for i in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    triangles = rising.minimum(falling).clamp_min(0)
    # Rounded twice, as in the published filters.
    return (triangles.float().double() * (2 / (high - low))).float()


def _band_edges(bands: int) -> Float[Tensor, "E"]:
    """The E = bands + 2 frequencies in Hz at which the triangles start, peak and end, float64."""
    knee = _KNEE / _LINEAR
    top = knee + math.log(RATE / 2 / _KNEE) / _LOG_STEP
    mels = [top * i / (bands + 1) for i in range(bands + 2)]
    hertz = [mel * _LINEAR if mel < knee else _KNEE * math.exp((mel - knee) * _LOG_STEP) for mel in mels]
    return torch.tensor(hertz, dtype=torch.float64)


_WARPED_BELOW = 4800.0  # Hz: formants are below; frequencies above are compressed or stretched up to half the rate


def warped_bands(bands: int, factor: float) -> Float[Tensor, "bands bands"]:
    """The matrix that takes the values of a frame's bands from frequencies that are `factor` times as high (Jaitly and
    Hinton 2013, equation 1), interpolated between the two nearest bands.
    """
    if bands == 1:
        return torch.ones(1, 1)
    hertz, nyquist = _band_edges(bands)[1:-1], RATE / 2
    knee = _WARPED_BELOW * min(factor, 1.0)
    slope = (nyquist - knee) / (nyquist - knee / factor)
    wanted = torch.where(hertz <= knee / factor, hertz * factor, nyquist - slope * (nyquist - hertz))
    above = torch.searchsorted(hertz, wanted).clamp(1, bands - 1)
    share = ((wanted - hertz[above - 1]) / (hertz[above] - hertz[above - 1])).clamp(0, 1)
    matrix = torch.zeros(bands, bands, dtype=torch.float64)
    rows = torch.arange(bands)
    matrix[rows, above - 1], matrix[rows, above] = 1 - share, share
    return matrix.float()


def pad(sound: Float[Tensor, "N"], seconds: float = 30.0) -> Float[Tensor, "M"]:
    """The audio followed by silence. UserError if it is empty or longer than the window; it is never cut silently."""
    if not len(sound):
        raise UserError("the audio has 0 samples; remove it")
    length = round(seconds * RATE)
    if len(sound) > length:
        raise UserError(
            f"the audio is {len(sound) / RATE:.2f} s long, more than {seconds:g} s; split it into shorter clips"
        )
    return F.pad(sound, (0, length - len(sound)))
