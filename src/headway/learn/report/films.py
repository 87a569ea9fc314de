"""Film strips of episodes for reports."""

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
_STRIP = 640  # minimum width of a strip in pixels; on narrow pages it scrolls


class FilmedEpisode(NamedTuple):
    """A played episode with its frames."""

    title: str
    caption: str
    reel: Reel


def filmed(played: Callable[P, Iterator[FilmedEpisode]]) -> Callable[P, list[Picture]]:
    """Decorate a generator of episodes to return their pictures; none, with a log line, if they cannot be rendered."""

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
    """At most `max_frames` evenly spaced frames of one episode of any length, with their steps."""

    episodes = 1

    def __init__(self, most: int = 32) -> None:
        self.most, self.frames = most, list[tuple[int, np.ndarray]]()
        self._step, self._every = 0, 1

    def step(self, draw: Callable[[], np.ndarray], episode: int = 0, gained: float = 0.0) -> None:
        """Record a step; calls `render` only if its frame is needed."""
        if self._step % self._every == 0:
            self.frames.append((self._step, draw()))
        self._step += 1
        if len(self.frames) == self.most:
            self.frames, self._every = self.frames[::2], 2 * self._every

    def end(self, draw: Callable[[], np.ndarray], episode: int = 0, gained: float = 0.0) -> None:
        """Ignore the final state."""


def strip(frames: Sequence[tuple[int, np.ndarray]], count: int = 8, height: int = 96) -> str:
    """At most `count` evenly spaced frames, side by side, as an SVG with embedded pixels."""
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
