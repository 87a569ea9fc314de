"""Episodes on film: as a video, or as a strip of small pictures."""

from __future__ import annotations

import base64
import io
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np

from headway.data.video import Film
from headway.environments.making import INSTALL
from headway.errors import UserError

Watch = Callable[[Callable[[], np.ndarray]], None]
"""Is given, at each step of an episode, what draws it: uint8 [H, W, 3]."""

_STRIP = 640  # pixels of a strip at least, on a narrow page too, where it is scrolled
_RATE = 30.0  # frames a second, where nothing says, and the most of a film
_WAITING = 8  # frames that are drawn and not yet encoded, each of some 750 kB


@contextmanager
def filming(path: Path | None, rate: float | None) -> Iterator[Watch | None]:
    """What films an episode, `rate` steps a second where that is known; None without a path.

    Frames are encoded in a thread of their own, while the next are played, and no more are drawn than the film shows.
    """
    if path is None:
        yield None
        return
    every, shown = shown_of(rate or _RATE)
    steps, waiting = count(), deque[Future[None]]()
    with Film(path, shown, quick=True) as film, ThreadPoolExecutor(1, "film") as encoder:

        def watch(draw: Callable[[], np.ndarray]) -> None:
            if next(steps) % every == 0:
                waiting.append(encoder.submit(film.add, draw()))
            if len(waiting) > _WAITING:
                waiting.popleft().result()

        yield watch
        for each in waiting:
            each.result()


def shown_of(rate: float) -> tuple[int, Fraction]:
    """Of how many steps a film shows one, and how many frames a second these are: at most 30."""
    every = max(1, math.ceil(rate / _RATE))
    return every, Fraction(max(1, round(rate)), every)


class Reel:
    """Frames at even distances of an episode of any length, no more than `most`, with the step of each."""

    def __init__(self, most: int = 32) -> None:
        self.most, self.frames = most, list[tuple[int, np.ndarray]]()
        self._step, self._every = 0, 1

    def take(self, draw: Callable[[], np.ndarray]) -> None:
        """A further step; `draw` is called where its frame is wanted."""
        if self._step % self._every == 0:
            self.frames.append((self._step, draw()))
        self._step += 1
        if len(self.frames) == self.most:
            self.frames, self._every = self.frames[::2], 2 * self._every


def strip(frames: Sequence[tuple[int, np.ndarray]], count: int = 8, height: int = 96) -> str:
    """At most `count` frames, spread evenly from first to last, beside each other as an SVG that holds its pixels."""
    places = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    gap, x, marks = 4, 0, []
    for step, frame in (frames[place] for place in places.tolist()):
        data, width = _png(frame, height)
        marks.append(f'<image x="{x}" y="0" width="{width}" height="{height}" href="data:image/png;base64,{data}"/>')
        marks.append(f'<rect class="border" x="{x}.5" y=".5" width="{width - 1}" height="{height - 1}"/>')
        marks.append(f'<text class="tick" x="{x + 2}" y="{height + 14}">{step}</text>')
        x += width + gap
    size = f"0 0 {x - gap} {height + 18}"
    told = 'role="img" aria-label="frames of an episode, by step"'
    return f'<svg viewBox="{size}" {told} style="min-width:{_STRIP}px">{"".join(marks)}</svg>'


def _png(frame: np.ndarray, height: int) -> tuple[str, int]:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"pictures of episodes need the package pillow; {INSTALL}") from error
    image = Image.fromarray(frame)
    width = max(1, round(image.width * height / image.height))
    buffer = io.BytesIO()
    image.resize((width, height)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), width
