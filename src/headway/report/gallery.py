"""Images in the page itself, each with a line beneath."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import UInt8

from headway.report.charts import drawing, shorten, text

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
    return drawing(width, rows * (_SIDE + _LINE + _GAP) - _GAP, marks, "images", natural=True)


def data_uri(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A PNG file of red, green and blue, so that a page with pictures needs no package for images."""
    high, wide, _ = pixels.shape
    rows = np.concatenate([np.zeros((high, 1), np.uint8), pixels.reshape(high, -1)], axis=1)  # 0: no filter
    head = struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in parts)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
