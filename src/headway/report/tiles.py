"""Images on a page, each with a text of any length: they need no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from headway.report.png import data_uri

_LONGEST = 160  # pixels of a side, so that a page stays small
_COARSE = 64  # pixels of a side up to which each of them is to be seen


class Tile(NamedTuple):
    """An image with its text, which is `right` or wrong where that can be said, and a note under it; `beside` is shown
    to the right of it, at every width.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    text: str = ""
    note: str = ""
    right: bool | None = None
    beside: UInt8[np.ndarray, "H W 3"] | None = None


def tiled(tiles: Sequence[Tile], *, small: bool = False) -> str:
    """Tiles in rows, as HTML for a Picture."""
    return f'<div class="tiles{" small" if small else ""}">{"".join(map(_tile, tiles))}</div>'


def _tile(tile: Tile) -> str:
    kind = "" if tile.right is None else ' class="right"' if tile.right else ' class="wrong"'
    note = f"<small>{escape(tile.note)}</small>" if tile.note else ""
    told = f"<span{kind}>{escape(tile.text)}</span>{note}"
    if tile.beside is None:
        return f"<div>{_image(tile.pixels)}{told}</div>"
    return f'<div class="pair">{_image(tile.pixels)}{_image(tile.beside)}<p>{told}</p></div>'


def _image(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    shown = _small(pixels)
    drawn = ' class="pixels"' if max(shown.shape[:2]) <= _COARSE else ""
    return f'<img{drawn} alt="" src="{data_uri(shown)}">'


def _small(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Every so many pixels of a large image."""
    step = -(-max(pixels.shape[:2]) // _LONGEST)
    return pixels[::step, ::step]
