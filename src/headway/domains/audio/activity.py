"""Voice activity detection, and skipping of long pauses.

A frame counts by its energy above the noise floor of each band, and a stretch of frames by its spectral change: the
spectrum of a tone or a noise burst is constant, that of speech changes with each phone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.domains.audio.framing import Framed
from headway.domains.audio.mel import HOP, RATE, WINDOW, decades
from headway.domains.audio.sound import Sound

_BANDS = 24
_AT_ONCE = 6000  # frames per block
_SMOOTH = 5  # frames over which power is averaged
_PERIOD = 250  # frames: a sound this long without a dip is noise; speech has dips
_QUIETEST = -85.0  # decibels of a band that count as silence; the last of 16 bits is there
_BIAS = 3.0  # decibels from the minimum of noise to its mean
_ENOUGH = 15.0  # maximum decibels above the floor that count; more adds no certainty
_STARTS, _GOES_ON = 2.5, 1.6  # decibels above the floor, averaged over bands; noise alone stays below 1.3
_SHARE = 0.35  # of the nearby maximum, below which speech ends: rooms have noise too
_APART = 4  # frames before and after, between which the spectral change is measured
_CHANGE = 1.7  # decibels per band of most speech; tones and noise stay below 1.5
_AROUND = 11  # frames over which it is averaged within a stretch
_BRIDGED = 30  # frames of a gap within speech, such as the closure of a plosive; longer ones are pauses
_SHORTEST = 12  # frames of speech, below which it is a click


class Speech(NamedTuple):
    """Detected speech in a sound of `samples` at 16 kHz: `spans` are seconds, in order and disjoint."""

    samples: int
    spans: Float[np.ndarray, "N 2"]


def speech_of(sound: Sound) -> Speech:
    """Detect speech in one pass over a sound; an hour needs 17 MB. UserError for a truncated sound, or one shorter than
    a frame.
    """
    framed, found = Framed(sound), []
    while framed.more:
        around = framed.take(_AT_ONCE)
        if len(around) >= WINDOW:
            found.append(decades(around, _BANDS).half().numpy())
    bands = np.concatenate(found or [np.zeros((0, _BANDS), np.float16)])
    pieces = [_measured(bands, first) for first in range(0, len(bands), _AT_ONCE)]
    above, change = (np.concatenate(rows) for rows in zip(*pieces)) if pieces else (np.zeros(0), np.zeros(0))
    spans = _spans(above, change)
    seconds = np.array(spans, dtype=np.float64).reshape(-1, 2) * HOP / RATE
    return Speech(framed.samples, np.minimum(seconds, framed.samples / RATE))


def _measured(bands: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """For the frames from `first` on: decibels above the noise floor, and the spectral change around each."""
    beside = _PERIOD + _SMOOTH
    start = max(0, first - beside)
    power = 10.0 ** bands[start : first + _AT_ONCE + beside].astype(np.float64)
    level = 10 * np.log10(np.maximum(_mean(power, _SMOOTH), 1e-10))
    above = (level - np.maximum(_floor(level), _QUIETEST) - _BIAS).clip(0, _ENOUGH).mean(1)
    shape = level - level.mean(1, keepdims=True)
    wide = np.pad(shape, ((_APART, _APART), (0, 0)), mode="edge")
    change = np.abs(wide[2 * _APART :] - wide[: -2 * _APART]).mean(1)
    here = slice(first - start, first - start + _AT_ONCE)
    return above[here], change[here]


def _mean(values: Float[np.ndarray, "T *B"], count: int) -> Float[np.ndarray, "T *B"]:
    """The moving average over an odd `count` of values."""
    beside = ((count // 2 + 1, count // 2), *[(0, 0)] * (values.ndim - 1))
    total = np.pad(values, beside, mode="edge").cumsum(0)
    return (total[count:] - total[:-count]) / count


def _floor(level: Float[np.ndarray, "T B"]) -> Float[np.ndarray, "T B"]:
    """The noise floor under each frame: the larger of the minimum before it and the minimum after it, so that noise is
    detected from its start to its end. Without a complete period on either side, the minimum of all.
    """
    least = _least(level, _PERIOD)
    missing = np.full((len(level) - len(least), level.shape[1]), -np.inf)
    after, before = np.concatenate([least, missing]), np.concatenate([missing, least])
    return np.maximum(np.maximum(after, before), level.min(0))


def _least(values: Float[np.ndarray, "T *B"], period: int) -> Float[np.ndarray, "N *B"]:
    """The minimum of each `period` consecutive values, or of all if there are fewer."""
    period, reach = min(period, len(values)), 1
    while reach < period:
        step = min(reach, period - reach)
        values, reach = np.minimum(values[:-step], values[step:]), reach + step
    return values


def _spans(above: Float[np.ndarray, "T"], change: Float[np.ndarray, "T"]) -> list[tuple[int, int]]:
    """The first and past-the-end frames of speech: accepts or rejects complete stretches, then removes what is faint
    compared with nearby speech, and trailing noise.
    """
    kept = np.zeros_like(above)
    changes = _mean(change, _AROUND) > _CHANGE
    for first, last in _stretches(above, above > _GOES_ON):
        loud = above[first:last] > _STARTS
        if float(np.median(change[first:last][loud])) > _CHANGE:
            kept[first:last] = np.where(changes[first:last], above[first:last], 0.0)
    nearby = -_least(-np.pad(kept, _PERIOD // 2), 2 * (_PERIOD // 2) + 1)
    found = _stretches(kept, kept > np.maximum(_GOES_ON, _SHARE * nearby))
    return [(first, last) for first, last in found if last - first >= _SHORTEST]


def _stretches(above: Float[np.ndarray, "T"], goes_on: Bool[np.ndarray, "T"]) -> list[tuple[int, int]]:
    """Stretches above the continuation threshold that reach the start threshold; stretches with short gaps are
    merged.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], goes_on, [False]]).astype(np.int8)))
    found: list[tuple[int, int]] = []
    for first, last in edges.reshape(-1, 2).tolist():
        if above[first:last].max() > _STARTS:
            if found and first - found[-1][1] < _BRIDGED:
                first = found.pop()[0]
            found.append((first, last))
    return found


PAUSE = 0.5  # seconds without speech that end a segment or a subtitle
_LONG = 1.2  # seconds of a pause, above which its middle is skipped
_BESIDE = 0.4  # seconds kept before and after speech: faint beginnings and ends, and breath


class Timeline:
    """The audible timeline of a sound, its parts with speech joined together, and the mapping back to the original
    times.
    """

    def __init__(self, speech: Speech) -> None:
        self.duration = speech.samples / RATE
        self.is_silent = not len(speech.spans)
        self._spans = speech.spans
        self._kept = _kept(speech)
        self._places = np.concatenate([[0.0], np.diff(self._kept)[:, 0].cumsum()])  # part starts, in audible time
        starts, ends = self._spans[1:, 0], self._spans[:-1, 1]
        paused = starts - ends >= PAUSE
        middles = (ends + np.minimum((starts - ends) / 2, _BESIDE))[paused]
        part = np.searchsorted(self._kept[:, 0], middles, "right") - 1
        self._pauses = self._places[part] + middles - self._kept[part, 0]  # cuts, in audible time

    @staticmethod
    def whole(samples: int) -> Timeline:
        """The timeline of a sound without skipped parts."""
        return Timeline(Speech(samples, np.array([[0.0, samples / RATE]])))

    def heard(self, sound: Sound) -> Sound:
        """The sound without long pauses; the sound itself if there are none."""
        if self._places[-1] == self.duration:
            return sound
        return HeardParts(sound, [(round(first * RATE), round(last * RATE)) for first, last in self._kept.tolist()])

    def placed(self, start: float, end: float) -> tuple[float, float]:
        """The original times of an interval of audible time, moved out of pauses."""
        final = len(self._kept) - 1
        part = min(int(np.searchsorted(self._places, start, "right")) - 1, final)
        until = self._kept[part, 1]
        first = min(start + self._kept[part, 0] - self._places[part], until)
        part = min(max(int(np.searchsorted(self._places, end)) - 1, 0), final)
        last = min(end + self._kept[part, 0] - self._places[part], self._kept[part, 1])
        spoken = self._spans[(self._spans[:, 0] < last) & (first < self._spans[:, 1])]
        if len(spoken):
            return float(max(first, spoken[0, 0])), float(min(last, spoken[-1, 1]))
        return float(first), float(max(first, min(last, until)))

    def next_pause(self, start: float) -> float:
        """The audible time of the next pause after `start`; infinity if there are no more."""
        later = self._pauses[self._pauses > start + HOP / RATE]
        return float(later[0]) if len(later) else np.inf

    def voiced(self, start: float, end: float) -> float:
        """Seconds of speech in the audible time from `start` to `end`."""
        first, last = self.placed(start, end)
        return float(np.diff(self._spans.clip(first, last)).sum())

    def in_one(self, start: float, end: float) -> tuple[float, float]:
        """A word's times, from `original_times`, clipped to the stretch of speech that contains most of it."""
        starts, ends = self._spans[:, 0].clip(start), self._spans[:, 1].clip(max=end)
        most = int((ends - starts).argmax())
        return (float(starts[most]), float(ends[most])) if starts[most] < ends[most] else (start, end)


def _kept(speech: Speech) -> Float[np.ndarray, "N 2"]:
    """The audible parts in seconds: whole frames, except at the end."""
    duration, frame = speech.samples / RATE, HOP / RATE
    if not len(speech.spans):
        return np.zeros((0, 2))
    pauses = np.concatenate([[-_BESIDE], speech.spans.flatten(), [duration + _BESIDE]]).reshape(-1, 2)
    left_out = pauses[np.diff(pauses)[:, 0] > _LONG] + (_BESIDE, -_BESIDE)
    edges = np.minimum(np.round(left_out / frame) * frame, duration)
    kept = np.concatenate([[0.0], edges.flatten(), [duration]]).reshape(-1, 2)
    return kept[np.diff(kept)[:, 0] > frame / 2]


class HeardParts:
    """Consecutive parts of a sound, each from a sample to another, as a sound."""

    def __init__(self, sound: Sound, parts: list[tuple[int, int]]) -> None:
        self.source = sound.source
        self._sound, self._parts = sound, parts

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The parts in order, in blocks. Errors as for the sound."""
        waiting, at = iter(self._parts), 0
        part = next(waiting, None)
        for block in self._sound.blocks():
            pieces = []
            while part is not None and part[0] < at + len(block):
                pieces.append(block[max(0, part[0] - at) : part[1] - at])
                if part[1] > at + len(block):
                    break
                part = next(waiting, None)
            at += len(block)
            yield torch.cat(pieces) if pieces else block[:0]
