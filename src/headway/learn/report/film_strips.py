"""Film strips of episodes for reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import NamedTuple, ParamSpec

import numpy as np

from headway.errors import UserError, logger
from headway.learn.report.rendering import Picture

P = ParamSpec("P")
_LOG = logger(__name__)
_MIN_STRIP_WIDTH = 640  # minimum width of a strip in pixels; on narrow pages it scrolls


class FilmedEpisode(NamedTuple):
    """A played episode with its frames."""

    title: str
    caption: str
    reel: FrameSampler


def episode_pictures(episodes: Callable[P, Iterator[FilmedEpisode]]) -> Callable[P, list[Picture]]:
    """Decorate a generator of episodes to return their pictures. If they cannot be rendered, there are none, and the
    reason is logged.
    """

    @wraps(episodes)
    def pictures(*args: P.args, **settings: P.kwargs) -> list[Picture]:
        try:
            filmed_episodes = episodes(*args, **settings)
            return [Picture(title, caption, strip(reel.frames), wide=True) for title, caption, reel in filmed_episodes]
        except UserError as error:
            _LOG.warning("cannot render episodes for the report: %s", error)
            return []

    return pictures


class FrameSampler:
    """At most `max_frames` evenly spaced frames, with their steps, from one episode of any length."""

    episodes = 1

    def __init__(self, max_frames: int = 32) -> None:
        self.max_frames, self.frames = max_frames, list[tuple[int, np.ndarray]]()
        self._step, self._interval = 0, 1

    def step(self, render: Callable[[], np.ndarray], episode: int = 0, return_so_far: float = 0.0) -> None:
        """Record a step; calls `render` only if its frame is needed."""
        if self._step % self._interval == 0:
            self.frames.append((self._step, render()))
        self._step += 1
        if len(self.frames) == self.max_frames:
            self.frames, self._interval = self.frames[::2], 2 * self._interval

    def end(self, render: Callable[[], np.ndarray], episode: int = 0, return_so_far: float = 0.0) -> None:
        """Ignore the final state."""


def strip(frames: Sequence[tuple[int, np.ndarray]], count: int = 8, height: int = 96) -> str:
    """At most `count` evenly spaced frames, side by side, as an SVG with embedded pixels."""
    indices = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    gap, x, elements = 4, 0, []
    for step, frame in (frames[index] for index in indices.tolist()):
        data, width = _png(frame, height)
        elements.append(f'<image x="{x}" y="0" width="{width}" height="{height}" href="data:image/png;base64,{data}"/>')
        elements.append(f'<rect class="border" x="{x}.5" y=".5" width="{width - 1}" height="{height - 1}"/>')
        elements.append(f'<text class="tick" x="{x + 2}" y="{height + 14}">{step}</text>')
        x += width + gap
    size = f"0 0 {x - gap} {height + 18}"
    attributes = 'role="img" aria-label="frames of an episode, by step"'
    return f'<svg viewBox="{size}" {attributes} style="min-width:{_MIN_STRIP_WIDTH}px">{"".join(elements)}</svg>'


def _png(frame: np.ndarray, height: int) -> tuple[str, int]:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("rendering episodes needs pillow; run pip install 'headway[rl]'") from error
    image = Image.fromarray(frame)
    width = max(1, round(image.width * height / image.height))
    buffer = io.BytesIO()
    image.resize((width, height)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), width
