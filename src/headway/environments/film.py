"""Frames of an episode as a video, and as a strip of small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
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


def write_film(path: Path, frames: Sequence[np.ndarray], rate: float) -> None:
    """A video of frames uint8 [H, W, 3], `rate` of them a second, in H.264 where that is here."""
    av = _av()
    codec = next((name for name in _CODECS if name in av.codecs_available), None)
    if codec is None:
        raise UserError(f"the package av has none of {', '.join(_CODECS)}; install another build of it")
    height, width = (side - side % 2 for side in frames[0].shape[:2])  # which these codecs want even
    part = path.with_name(f".part.{path.name}")
    try:
        with av.open(str(part), "w") as container:
            stream = container.add_stream(codec, rate=min(max(round(rate), _RATES[0]), _RATES[-1]))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame[:height, :width], format="rgb24")))
            container.mux(stream.encode())
        part.replace(path)
    except OSError as error:  # what av raises, too
        raise UserError(f"the video {path} cannot be written ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)


def strip(frames: Sequence[np.ndarray], count: int = 8, height: int = 96) -> str:
    """At most `count` frames, spread evenly from first to last, beside each other as an SVG that holds its pixels."""
    places = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    gap, x, marks = 4, 0, []
    for place in places.tolist():
        data, width = _png(frames[place], height)
        marks.append(f'<image x="{x}" y="0" width="{width}" height="{height}" href="data:image/png;base64,{data}"/>')
        marks.append(f'<text class="tick" x="{x + 2}" y="{height + 14}">{place}</text>')
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
