"""Images in the page itself, each with a line beneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import UInt8

from headway.report.charts import shorten, svg, text
from headway.report.png import data_uri

_COLUMNS, _SIDE, _GAP, _LINE = 6, 150, 12, 24
_LETTERS = 23


@dataclass(frozen=True)
class Exhibit:
    """An image and what is said of it, which is `right` or not; None where that is no question."""

    pixels: UInt8[np.ndarray, "H W 3"]
    line: str = ""
    right: bool | None = None


def gallery(exhibits: Sequence[Exhibit]) -> str:
    """The images in rows, as one picture."""
    marks = []
    for number, each in enumerate(exhibits):
        row, column = divmod(number, _COLUMNS)
        x, y = column * (_SIDE + _GAP), row * (_SIDE + _LINE + _GAP)
        place = f'x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}"'
        title = f"<title>{escape(each.line)}</title>" if each.line else ""
        marks.append(f'<image class="pixels" {place} href="{data_uri(each.pixels)}">{title}</image>')
        kind = "name" if each.right is None else "right" if each.right else "wrong"
        marks.append(text(kind, x + 2, y + _SIDE + 16, shorten(each.line, _LETTERS)))
    rows = -(-len(exhibits) // _COLUMNS)
    width = min(_COLUMNS, len(exhibits)) * (_SIDE + _GAP) - _GAP
    return svg(width, rows * (_SIDE + _LINE + _GAP) - _GAP, marks, "images", natural=True)
