"""Times among the symbols of a transcript: what may follow what, and the segments that they spell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.domains.audio.marks import Marks

STEP = 0.02  # seconds from one time to the next
FRAMES = 2  # log-mel frames of a step


@dataclass(frozen=True)
class WhisperRule:
    """What Whisper may write next (Radford et al. 2022, section 4.5, and its reference implementation).

    Times come in pairs, an end and the next beginning, but for the first and before the end of all; none is earlier
    than the one before, and the end of a segment not as early as its beginning. The first is at most `latest` s. Where
    all times together are likelier than each symbol of text, it is a time. Without `timed` there are none.
    """

    marks: Marks
    timed: bool = True
    latest: float = 1.0

    def __call__(self, logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        marks = self.marks
        logits.index_fill_(1, _index(marks.never, logits.device), -torch.inf)
        times, text = logits[:, marks.first_time :], logits[:, : marks.first_time]
        if not history.shape[1]:
            logits.index_fill_(1, _index(marks.not_first, logits.device), -torch.inf)
        if not self.timed:
            times.fill_(-torch.inf)
        elif not history.shape[1]:
            text.fill_(-torch.inf)
            times[:, round(self.latest / STEP) + 1 :] = -torch.inf
        else:
            self._forbid(logits, history)
            likelier = times.float().logsumexp(1) > text.amax(1)
            for row in likelier.nonzero()[:, 0].tolist():
                text[row] = -torch.inf

    def _forbid(self, logits: Tensor, history: Int[Tensor, "R T"]) -> None:
        """Row by row, as mostly there is little to forbid. The start counts as a time before the first symbol; the end
        of a segment may come again, as the beginning of the next.
        """
        first = self.marks.first_time
        ends = history[:, -2:].tolist()
        for row, latest in enumerate((history - first).amax(1).tolist()):
            last, before = ends[row][-1] >= first, len(ends[row]) == 1 or ends[row][0] >= first
            closed = last and not before
            logits[row, first : first + max(0, latest + (not closed))] = -torch.inf
            if last and before:
                logits[row, first:] = -torch.inf
            elif last:
                logits[row, : self.marks.end] = -torch.inf


@lru_cache(maxsize=16)
def _index(symbols: tuple[int, ...], device: torch.device) -> Int[Tensor, "N"]:
    return torch.tensor(symbols, dtype=torch.long, device=device)


class Part(NamedTuple):
    """A segment within a window: seconds from its start, the symbols, times included, and words if they are timed."""

    start: float
    end: float
    ids: list[int]
    words: tuple[Any, ...] = ()


def parts(ids: Sequence[int], marks: Marks, frames: int) -> tuple[list[Part], int]:
    """The segments of a window of `frames` log-mel frames, and how many of these are done with.

    Where the text ends in the midst of a segment, the next window begins where the last whole one ended.
    """
    is_time = [symbol >= marks.first_time for symbol in ids]
    cuts = [place for place in range(1, len(ids)) if is_time[place] and is_time[place - 1]]
    closed = is_time[-2:] == [False, True]
    if not cuts:
        times = [_steps(symbol, marks) for symbol in ids if symbol >= marks.first_time]
        start = times[0] * STEP if is_time[:1] == [True] else 0.0
        end = times[-1] * STEP if times and times[-1] * STEP > start else frames * STEP / FRAMES
        return [Part(start, end, list(ids))], frames
    places = [0, *cuts, *([len(ids)] if closed else [])]
    found = [_part(ids[first:last], marks) for first, last in pairwise(places)]
    return found, frames if closed else min(FRAMES * _steps(ids[places[-1] - 1], marks) or frames, frames)


def _part(ids: Sequence[int], marks: Marks) -> Part:
    return Part(_steps(ids[0], marks) * STEP, _steps(ids[-1], marks) * STEP, list(ids))


def _steps(symbol: int, marks: Marks) -> int:
    return symbol - marks.first_time
