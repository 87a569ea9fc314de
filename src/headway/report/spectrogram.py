"""Spectrograms, with what is heard in them along the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headway.report.charts import Axis, shorten, svg, text
from headway.report.png import data_uri

_WIDTH, _NARROW = 960, 480  # with what is said below the sound, and of the sound alone
_LEFT, _RIGHT = 84, 12
_HIGH, _ROW, _TRACK = 150, 14, 22  # of the spectrogram, of a symbol's attention, of a track of spans
# Dark to light, as many see loudness: points of a scale between which colours are mixed.
_SCALE = np.array([[11, 15, 38], [72, 30, 104], [168, 54, 88], [236, 122, 52], [252, 234, 166]], np.float64)
_INK = np.array([37, 99, 201], np.float64)  # of attention, over nothing


class Span(NamedTuple):
    """What is said between two times, in seconds."""

    text: str
    start: float
    end: float


def spectrogram(
    frames: Float[np.ndarray, "T M"],
    seconds: float,
    tracks: Mapping[str, Sequence[Span]] | None = None,
    attention: Float[np.ndarray, "N S"] | None = None,
    symbols: Sequence[str] = (),
) -> str:
    """An SVG of log-mel frames over `seconds`, low bands below; under it `tracks` of spans by name, and where each of
    `symbols` looked along the same time, in weights from 0 on.
    """
    tracks = tracks or {}
    alone = not tracks and attention is None
    wide, left = (_NARROW, _RIGHT) if alone else (_WIDTH, _LEFT)
    axis = Axis(0.0, seconds, left, wide - _RIGHT)
    top = 8 + _TRACK * len(tracks)
    marks = [_image(_coloured(frames.T[::-1]), left, top, wide - left - _RIGHT, _HIGH)]
    for number, (name, spans) in enumerate(tracks.items()):
        y, bottom = 8 + _TRACK * number, top + _HIGH
        marks.append(text("name", _LEFT - 8, y + 14, shorten(name, 10), "end"))
        marks += [mark for span in spans for mark in _span(span, axis, y, bottom if number == 0 else None, number)]
    low = top + _HIGH + 6
    if attention is not None and len(attention):
        high = _ROW * len(attention)
        marks.append(_image(_inked(attention), left, low, wide - left - _RIGHT, high))
        names = enumerate(symbols[: len(attention)])
        marks += [text("symbol", _LEFT - 8, low + _ROW * i + 11, shorten(name, 11), "end") for i, name in names]
        low += high + 2
    marks += [text("tick", axis.place(tick), low + 14, f"{tick:g}", "middle") for tick in axis.ticks(8)]
    marks.append(text("label", wide - _RIGHT, low + 30, "seconds", "end"))
    return svg(wide, low + 36, marks, "spectrogram", natural=True)


def _span(span: Span, axis: Axis, y: float, bottom: float | None, number: int) -> list[str]:
    """A bar with its text; down to `bottom`, lines through the spectrogram where it starts and ends."""
    left, right = axis.place(span.start), axis.place(span.end)
    tip = escape(f"{span.text}: {span.start:.2f} to {span.end:.2f} s")
    marks = [
        f'<rect class="bar s{number}" x="{left:.1f}" y="{y + 2}" width="{max(1.0, right - left):.1f}" height="4">'
        f"<title>{tip}</title></rect>",
        text("symbol", (left + right) / 2, y + 18, shorten(span.text, max(1, int((right - left) / 6.5))), "middle"),
    ]
    if bottom is not None:
        marks.append(f'<path class="bound" d="M{left:.1f} {y + 20}V{bottom}M{right:.1f} {y + 20}V{bottom}"/>')
    return marks


def _coloured(values: Float[np.ndarray, "R C"]) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    places = (values - low) / ((high - low) or 1.0) * (len(_SCALE) - 1)
    below = np.minimum(places.astype(int), len(_SCALE) - 2)
    part = (places - below)[..., None]
    return (_SCALE[below] * (1 - part) + _SCALE[below + 1] * part).round().astype(np.uint8)


def _inked(weights: Float[np.ndarray, "R C"]) -> np.ndarray:
    """Each row by its own greatest, as pixels whose opacity is the weight."""
    share = weights / np.maximum(weights.max(1, keepdims=True), 1e-9)
    pixels = np.empty((*weights.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = _INK.astype(np.uint8), (255 * share).round().astype(np.uint8)
    return pixels


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return f'<image {place} class="pixels" href="{data_uri(pixels)}"/>'
