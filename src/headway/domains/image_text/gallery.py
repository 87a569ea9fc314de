"""Pictures for the page of a run: what lies near to what."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.images import pillow
from headway.report import Picture

_SIDE, _GAP, _LEFT = 56, 8, 150  # in the units of the drawing
_NEAREST = 5
_LONGEST = 28  # characters of a text
_SHOWN = 96  # pixels of a side


def gallery(
    pixels: UInt8[np.ndarray, "M H W 3"],
    texts: Sequence[str],
    of: Int[np.ndarray, "N"],
    similar: Float[np.ndarray, "N M"],
    count: int,
) -> list[Picture]:
    """`count` of the texts with the images nearest to them, and `count` images with their nearest texts."""
    asked = np.unique(np.linspace(0, len(texts) - 1, count).astype(int)).tolist()
    looked = np.unique(np.linspace(0, len(pixels) - 1, count).astype(int)).tolist()
    caption = f"held out; the {_NEAREST} nearest of {len(pixels):,}, with a frame where they belong together"
    found = _drawing([_images_of(row, pixels, texts, of, similar) for row in asked], "texts and their nearest images")
    other = f"held out; the {_NEAREST} nearest of {len(texts):,}, marked where they belong together"
    back = _drawing([_texts_of(image, pixels, texts, of, similar) for image in looked], "images and their texts")
    return [Picture("Nearest images of a text", caption, found), Picture("Nearest texts of an image", other, back)]


def _images_of(row: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similar: np.ndarray) -> list[str]:
    marks = [_text(_LEFT - _GAP, _SIDE / 2 + 4, _short(texts[row]), "end")]
    for place, image in enumerate(np.argsort(-similar[row], kind="stable")[:_NEAREST].tolist()):
        x = _LEFT + place * (_SIDE + _GAP)
        marks.append(_image(x, pixels[image]))
        if image == of[row]:
            marks.append(
                f'<rect class="whisker" fill="none" x="{x - 2}" y="-2" width="{_SIDE + 4}" height="{_SIDE + 4}"/>'
            )
    return marks


def _texts_of(image: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similar: np.ndarray) -> list[str]:
    marks = [_image(0, pixels[image])]
    for place, row in enumerate(map(int, np.argsort(-similar[:, image], kind="stable")[:_NEAREST])):
        own = of[row] == image
        text = ("✓ " if own else "") + _short(texts[row], 44)
        marks.append(_text(_SIDE + 2 * _GAP, 10 + place * 11.5, text, "start", "name" if own else "label"))
    return marks


def _drawing(rows: Sequence[Sequence[str]], title: str) -> str:
    step = _SIDE + _GAP
    body = "".join(
        f'<g transform="translate(2 {2 + number * step})">{"".join(marks)}</g>' for number, marks in enumerate(rows)
    )
    width, height = _LEFT + _NEAREST * step, len(rows) * step + 4
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _image(x: float, pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    image = pillow().fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_SHOWN, _SHOWN))
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image x="{x}" y="0" width="{_SIDE}" height="{_SIDE}" href="data:image/png;base64,{data}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "name") -> str:
    return f'<text class="{kind}" x="{x}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
