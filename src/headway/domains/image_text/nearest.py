"""Pictures for the page of a run: what lies near to what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.images import pillow
from headway.report import Picture
from headway.report.charts import shorten, svg, text
from headway.report.png import data_uri

_SIDE, _GAP, _LEFT = 56, 8, 180  # in the units of the drawing
_NEAREST = 5
_SHOWN = 96  # pixels of a side


def nearest_pictures(
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
    marks = [text("name", _LEFT - _GAP, _SIDE / 2 + 4, shorten(texts[row], 22), "end")]
    for place, image in enumerate(map(int, np.argsort(-similar[row], kind="stable")[:_NEAREST])):
        x = _LEFT + place * (_SIDE + _GAP)
        marks.append(_image(x, pixels[image]))
        if image == of[row]:
            marks.append(f'<rect class="whisker" x="{x - 2}" y="-2" width="{_SIDE + 4}" height="{_SIDE + 4}"/>')
    return marks


def _texts_of(image: int, pixels: np.ndarray, texts: Sequence[str], of: np.ndarray, similar: np.ndarray) -> list[str]:
    marks = [_image(0, pixels[image])]
    for place, row in enumerate(map(int, np.argsort(-similar[:, image], kind="stable")[:_NEAREST])):
        own = of[row] == image
        line = ("✓ " if own else "") + shorten(texts[row], 60)
        marks.append(text("name" if own else "label", _SIDE + 2 * _GAP, 9 + place * 12, line))
    return marks


def _drawing(rows: Sequence[Sequence[str]], title: str) -> str:
    step = _SIDE + 2 * _GAP
    groups = [f'<g transform="translate(2 {2 + number * step})">{"".join(row)}</g>' for number, row in enumerate(rows)]
    return svg(_LEFT + _NEAREST * (_SIDE + _GAP), len(rows) * step, groups, title)


def _image(x: float, pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    image = pillow().fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_SHOWN, _SHOWN))
    return f'<image x="{x}" y="0" width="{_SIDE}" height="{_SIDE}" href="{data_uri(np.array(image))}"/>'
