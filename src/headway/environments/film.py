"""Frames of an episode as a video, and as a strip of small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from headway.environments.making import INSTALL
from headway.errors import UserError

_RATES = range(1, 241)  # frames a second that players show
_CODECS = ("libx264", "h264", "mpeg4")
SUFFIXES = (".mp4", ".mkv", ".mov")


def check_film(path: Path) -> None:
    """UserError for a place where no video can be written, before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no name of a video; end it with {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first, or choose another place for the video")
    _av()


class Film:
    """A video in H.264 where that is here, written frame by frame: `with Film(path, rate) as film: film.add(frame)`.

    `rate` is in frames a second. What ends with an error leaves nothing behind.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._part = path, path.with_name(f".part.{path.name}")
        self._rate = min(max(round(rate), _RATES[0]), _RATES[-1])
        self._stream: Any = None
        av = _av()
        self._codec = next((name for name in _CODECS if name in av.codecs_available), None)
        if self._codec is None:
            raise UserError(f"the package av has none of {', '.join(_CODECS)}; install another build of it")

    def __enter__(self) -> Film:
        with self._told():
            self._container = _av().open(str(self._part), "w")
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                with self._told():
                    self._container.mux(self._stream.encode())
                    self._container.close()
                    self._part.replace(self._path)
        finally:
            self._container.close()
            self._part.unlink(missing_ok=True)

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 [H, W, 3]; all are of one size."""
        height, width = (side - side % 2 for side in frame.shape[:2])  # which these codecs want even
        with self._told():
            if self._stream is None:
                self._stream = self._container.add_stream(self._codec, rate=self._rate)
                self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            plain = np.ascontiguousarray(frame[:height, :width])
            self._container.mux(self._stream.encode(_av().VideoFrame.from_ndarray(plain, format="rgb24")))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # what av raises, too
            raise UserError(f"the video {self._path} cannot be written ({error.strerror or error})") from error


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
        marks.append(f'<text class="tick" x="{x + 2}" y="{height + 14}">{step}</text>')
        x += width + gap
    size = f"0 0 {x - gap} {height + 18}"
    return f'<svg viewBox="{size}" role="img" aria-label="frames of an episode, by step">{"".join(marks)}</svg>'


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


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f"videos need the package av; {INSTALL}") from error
    return av
