"""Voice activity detection, and skipping long pauses.

Frames are selected by their energy above the noise floor in each band, and spans of frames by their spectral change:
the spectrum of a tone or a noise burst is constant, while that of speech changes with each phone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.domains.audio.framing import SampleFrames
from headway.domains.audio.mel import HOP, RATE, WINDOW, log_power
from headway.domains.audio.sound_files import Sound

_BANDS = 24
_BLOCK_FRAMES = 6000  # frames per block
_SMOOTHING = 5  # frames over which power is averaged
_NOISE_PERIOD = 250  # frames without a dip that make it noise; speech has dips
_SILENCE_DB = -85.0  # decibels of a band that count as silence; the last of 16 bits is there
_NOISE_BIAS = 3.0  # decibels from the minimum of noise to its mean
_MAX_DB = 15.0  # maximum decibels above the floor that count; more adds no certainty
_START_DB, _CONTINUE_DB = 2.5, 1.6  # decibels above the floor, averaged over bands; noise alone stays below 1.3
_NEARBY_SHARE = 0.35  # share of the nearby maximum below which speech ends: rooms have noise too
_CHANGE_LAG = 4  # frames before and after, between which the spectral change is measured
_MIN_CHANGE = 1.7  # decibels per band of most speech; tones and noise stay below 1.5
_CHANGE_SMOOTHING = 11  # frames over which it is averaged within a span
_MAX_GAP = 30  # frames of a gap within speech, such as the closure of a plosive; longer ones are pauses
_MIN_SPEECH = 12  # frames below which it is a click, not speech


class DetectedSpeech(NamedTuple):
    """Detected speech in audio of `samples` samples at 16 kHz: `spans` are disjoint and in order, in seconds."""

    samples: int
    spans: Float[np.ndarray, "N 2"]


def detect_speech(sound: Sound) -> DetectedSpeech:
    """Detect speech in one pass; an hour of audio needs 17 MB of memory. UserError for audio that is truncated or
    shorter than a frame.
    """
    sample_frames, blocks = SampleFrames(sound), []
    while sample_frames.has_more:
        samples = sample_frames.take(_BLOCK_FRAMES)
        if len(samples) >= WINDOW:
            blocks.append(log_power(samples, _BANDS).half().numpy())
    bands = np.concatenate(blocks or [np.zeros((0, _BANDS), np.float16)])
    measurements = [(np.zeros(0), np.zeros(0))]  # decibels above the noise floor, and the spectral change, per frame
    for first in range(0, len(bands), _BLOCK_FRAMES):
        context = _NOISE_PERIOD + _SMOOTHING
        start = max(0, first - context)
        power = 10.0 ** bands[start : first + _BLOCK_FRAMES + context].astype(np.float64)
        level = 10 * np.log10(np.maximum(_moving_average(power, _SMOOTHING), 1e-10))
        # The noise floor: the larger of the minimum before a frame and the minimum after it, so that noise is detected
        # from its start to its end. Without a complete period on either side, the minimum of all.
        minima = _running_minimum(level, _NOISE_PERIOD)
        missing = np.full((len(level) - len(minima), level.shape[1]), -np.inf)
        after = np.concatenate([minima, missing])
        before = np.concatenate([missing, minima])
        floor = np.maximum(np.maximum(after, before), level.min(0))
        decibels = (level - np.maximum(floor, _SILENCE_DB) - _NOISE_BIAS).clip(0, _MAX_DB).mean(1)
        shape = level - level.mean(1, keepdims=True)
        padded = np.pad(shape, ((_CHANGE_LAG, _CHANGE_LAG), (0, 0)), mode="edge")
        change = np.abs(padded[2 * _CHANGE_LAG :] - padded[: -2 * _CHANGE_LAG]).mean(1)
        block = slice(first - start, first - start + _BLOCK_FRAMES)
        measurements.append((decibels[block], change[block]))
    decibels, change = (np.concatenate(rows) for rows in zip(*measurements))
    # Accept or reject whole spans, then remove trailing noise and parts that are faint compared with nearby speech.
    speech = np.zeros_like(decibels)
    is_changing = _moving_average(change, _CHANGE_SMOOTHING) > _MIN_CHANGE
    for start, stop in _stretches(decibels, decibels > _CONTINUE_DB):
        loud = decibels[start:stop] > _START_DB
        if float(np.median(change[start:stop][loud])) > _MIN_CHANGE:
            speech[start:stop] = np.where(is_changing[start:stop], decibels[start:stop], 0.0)
    nearby = -_running_minimum(-np.pad(speech, _NOISE_PERIOD // 2), 2 * (_NOISE_PERIOD // 2) + 1)
    stretches = _stretches(speech, speech > np.maximum(_CONTINUE_DB, _NEARBY_SHARE * nearby))
    spans = [(start, stop) for start, stop in stretches if stop - start >= _MIN_SPEECH]
    seconds = np.array(spans, dtype=np.float64).reshape(-1, 2) * HOP / RATE
    return DetectedSpeech(sample_frames.samples, np.minimum(seconds, sample_frames.samples / RATE))


def _moving_average(values: Float[np.ndarray, "T *B"], count: int) -> Float[np.ndarray, "T *B"]:
    """The moving average over an odd `count` of values."""
    padding = ((count // 2 + 1, count // 2), *[(0, 0)] * (values.ndim - 1))
    total = np.pad(values, padding, mode="edge").cumsum(0)
    return (total[count:] - total[:-count]) / count


def _running_minimum(values: Float[np.ndarray, "T *B"], period: int) -> Float[np.ndarray, "N *B"]:
    """The minimum of each `period` consecutive values, or of all if there are fewer."""
    period, width = min(period, len(values)), 1
    while width < period:
        step = min(width, period - width)
        values, width = np.minimum(values[:-step], values[step:]), width + step
    return values


def _stretches(decibels: Float[np.ndarray, "T"], continues: Bool[np.ndarray, "T"]) -> list[tuple[int, int]]:
    """Spans above the continuation threshold that reach the start threshold; spans with short gaps are merged."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], continues, [False]]).astype(np.int8)))
    stretches: list[tuple[int, int]] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        if decibels[start:stop].max() > _START_DB:
            if stretches and start - stretches[-1][1] < _MAX_GAP:
                start = stretches.pop()[0]
            stretches.append((start, stop))
    return stretches


PAUSE = 0.5  # seconds without speech that end a segment or a subtitle
_LONG_PAUSE = 1.2  # seconds of a pause, above which its middle is skipped
_MARGIN = 0.4  # seconds kept before and after speech: faint beginnings and ends, and breath


class Timeline:
    """The audible timeline of a recording (its parts with speech, concatenated) and the mapping back to the original
    times.
    """

    def __init__(self, speech: DetectedSpeech) -> None:
        self.duration, frame = speech.samples / RATE, HOP / RATE
        self.is_silent = not len(speech.spans)
        self._spans = speech.spans
        self._parts = np.zeros((0, 2))  # the audible parts in seconds: whole frames, except at the end
        if not self.is_silent:
            pauses = np.concatenate([[-_MARGIN], speech.spans.flatten(), [self.duration + _MARGIN]]).reshape(-1, 2)
            skipped = pauses[np.diff(pauses)[:, 0] > _LONG_PAUSE] + (_MARGIN, -_MARGIN)
            edges = np.minimum(np.round(skipped / frame) * frame, self.duration)
            parts = np.concatenate([[0.0], edges.flatten(), [self.duration]]).reshape(-1, 2)
            self._parts = parts[np.diff(parts)[:, 0] > frame / 2]
        self._part_starts = np.concatenate([[0.0], np.diff(self._parts)[:, 0].cumsum()])  # part starts, in audible time
        starts, stops = self._spans[1:, 0], self._spans[:-1, 1]
        is_pause = starts - stops >= PAUSE
        cuts = (stops + np.minimum((starts - stops) / 2, _MARGIN))[is_pause]
        part = np.searchsorted(self._parts[:, 0], cuts, "right") - 1
        self._pauses = self._part_starts[part] + cuts - self._parts[part, 0]  # cuts, in audible time

    @staticmethod
    def of_complete(samples: int) -> Timeline:
        """The timeline of a recording from which nothing is skipped."""
        return Timeline(DetectedSpeech(samples, np.array([[0.0, samples / RATE]])))

    def audible(self, sound: Sound) -> Sound:
        """The sound without long pauses; the sound itself if there are none."""
        if self._part_starts[-1] == self.duration:
            return sound
        return AudibleParts(sound, [(round(start * RATE), round(stop * RATE)) for start, stop in self._parts.tolist()])

    def original_times(self, start: float, end: float) -> tuple[float, float]:
        """The original times of an interval of audible time, moved out of pauses."""
        last_part = len(self._parts) - 1
        part = min(int(np.searchsorted(self._part_starts, start, "right")) - 1, last_part)
        part_end = self._parts[part, 1]
        begin = min(start + self._parts[part, 0] - self._part_starts[part], part_end)
        part = min(max(int(np.searchsorted(self._part_starts, end)) - 1, 0), last_part)
        finish = min(end + self._parts[part, 0] - self._part_starts[part], self._parts[part, 1])
        speech = self._spans[(self._spans[:, 0] < finish) & (begin < self._spans[:, 1])]
        if len(speech):
            return float(max(begin, speech[0, 0])), float(min(finish, speech[-1, 1]))
        return float(begin), float(max(begin, min(finish, part_end)))

    def next_pause(self, start: float) -> float:
        """The audible time of the next pause after `start`; infinity if there are no more."""
        later = self._pauses[self._pauses > start + HOP / RATE]
        return float(later[0]) if len(later) else np.inf

    def speech_seconds(self, start: float, end: float) -> float:
        """Seconds of speech in the audible time from `start` to `end`."""
        begin, finish = self.original_times(start, end)
        return float(np.diff(self._spans.clip(begin, finish)).sum())

    def within_speech(self, start: float, end: float) -> tuple[float, float]:
        """A word's times, from `original_times`, clipped to the span of speech that contains most of it."""
        starts, stops = self._spans[:, 0].clip(start), self._spans[:, 1].clip(max=end)
        longest_part = int((stops - starts).argmax())
        return (
            (float(starts[longest_part]), float(stops[longest_part]))
            if starts[longest_part] < stops[longest_part]
            else (start, end)
        )


class AudibleParts:
    """Consecutive parts of a sound, each between two samples, as a sound."""

    def __init__(self, sound: Sound, parts: list[tuple[int, int]]) -> None:
        self.source = sound.source
        self._sound, self._parts = sound, parts

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The parts in order, in blocks. Raises the same errors as the sound."""
        remaining, position = iter(self._parts), 0
        part = next(remaining, None)
        for block in self._sound.blocks():
            chunks = []
            while part is not None and part[0] < position + len(block):
                chunks.append(block[max(0, part[0] - position) : part[1] - position])
                if part[1] > position + len(block):
                    break
                part = next(remaining, None)
            position += len(block)
            yield torch.cat(chunks) if chunks else block[:0]
