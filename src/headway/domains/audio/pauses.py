"""A sound without its long pauses, and when in the whole of it something was said."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.activity import Speech
from headway.domains.audio.mel import HOP
from headway.domains.audio.resample import RATE
from headway.domains.audio.sound import Sound

_LONG = 1.2  # seconds of a pause, above which its midst is left out
_BESIDE = 0.4  # seconds that are heard before speech and after it: faint beginnings and ends, and breath


class Timeline:
    """What is heard of a sound, the parts of it with speech put together, and when that was in the whole of it."""

    def __init__(self, speech: Speech) -> None:
        self.duration = speech.samples / RATE
        self.is_silent = not len(speech.spans)
        self._spans = speech.spans
        self._kept = _kept(speech)
        self._places = np.concatenate([[0.0], np.diff(self._kept)[:, 0].cumsum()])  # of the parts, in what is heard

    @staticmethod
    def whole(samples: int) -> Timeline:
        """That of a sound which is heard from its start to its end."""
        return Timeline(Speech(samples, np.array([[0.0, samples / RATE]])))

    def heard(self, sound: Sound) -> Sound:
        """The sound without long pauses; itself where there are none."""
        if self._places[-1] == self.duration:
            return sound
        return HeardParts(sound, [(round(first * RATE), round(last * RATE)) for first, last in self._kept.tolist()])

    def placed(self, start: float, end: float) -> tuple[float, float]:
        """When in the whole sound something begins and ends, which is not in a pause, by when in what is heard."""
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

    def in_one(self, start: float, end: float) -> tuple[float, float]:
        """A word's times, which `placed` gave, within the stretch of speech that it shares most of."""
        starts, ends = self._spans[:, 0].clip(start), self._spans[:, 1].clip(max=end)
        most = int((ends - starts).argmax())
        return (float(starts[most]), float(ends[most])) if starts[most] < ends[most] else (start, end)


def _kept(speech: Speech) -> Float[np.ndarray, "N 2"]:
    """From where to where a sound is heard, in seconds: whole frames, but for its end."""
    duration, frame = speech.samples / RATE, HOP / RATE
    if not len(speech.spans):
        return np.zeros((0, 2))
    pauses = np.concatenate([[-_BESIDE], speech.spans.flatten(), [duration + _BESIDE]]).reshape(-1, 2)
    left_out = pauses[np.diff(pauses)[:, 0] > _LONG] + (_BESIDE, -_BESIDE)
    edges = np.minimum(np.round(left_out / frame) * frame, duration)
    kept = np.concatenate([[0.0], edges.flatten(), [duration]]).reshape(-1, 2)
    return kept[np.diff(kept)[:, 0] > frame / 2]


class HeardParts:
    """Parts of a sound in a row, from a sample to another, as a sound."""

    def __init__(self, sound: Sound, parts: list[tuple[int, int]]) -> None:
        self.source = sound.source
        self._sound, self._parts = sound, parts

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The parts from the first on, in pieces. Errors as of the sound."""
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
