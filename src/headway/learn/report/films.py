"""Episodes in frames beside each other, for the page of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import NamedTuple, ParamSpec

import numpy as np

from headway.errors import UserError, logger
from headway.learn.report.page import Picture

P = ParamSpec("P")
_LOG = logger(__name__)
_STRIP = 640  # pixels of a strip at least, on a narrow page too, where it is scrolled


class FilmedEpisode(NamedTuple):
    """An episode that was played, with its frames."""

    title: str
    caption: str
    reel: Reel


def filmed(played: Callable[P, Iterator[FilmedEpisode]]) -> Callable[P, list[Picture]]:
    """Makes pictures of the episodes that are played: none, with a line in the log, where they cannot be drawn."""

    @wraps(played)
    def pictures(*args: P.args, **settings: P.kwargs) -> list[Picture]:
        try:
            shown = played(*args, **settings)
            return [Picture(title, caption, strip(reel.frames), wide=True) for title, caption, reel in shown]
        except UserError as error:
            _LOG.warning("the report has no pictures of episodes: %s", error)
            return []

    return pictures


class Reel:
    """Frames at even distances of an episode of any length, no more than `most`, with the step of each. It watches one
    episode.
    """

    episodes = 1

    def __init__(self, most: int = 32) -> None:
        self.most, self.frames = most, list[tuple[int, np.ndarray]]()
        self._step, self._every = 0, 1

    def step(self, draw: Callable[[], np.ndarray], episode: int = 0, gained: float = 0.0) -> None:
        """A further step; `draw` is called where its frame is wanted."""
        if self._step % self._every == 0:
            self.frames.append((self._step, draw()))
        self._step += 1
        if len(self.frames) == self.most:
            self.frames, self._every = self.frames[::2], 2 * self._every

    def end(self, draw: Callable[[], np.ndarray], episode: int = 0, gained: float = 0.0) -> None:
        """What comes after the last step is not shown."""


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
        raise UserError("pictures of episodes need the package pillow; pip install 'headway[rl]'") from error
    image = Image.fromarray(frame)
    width = max(1, round(image.width * height / image.height))
    buffer = io.BytesIO()
    image.resize((width, height)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), width
