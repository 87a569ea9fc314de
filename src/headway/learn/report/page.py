"""A run's page and a comparison's page: one file each, which needs nothing from outside."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from headway.errors import UserError
from headway.formats.durable import write_text
from headway.learn.report.charts import short, shorten

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure


def data_uri(pixels: UInt8[np.ndarray, "H W C"]) -> str:
    """What an SVG's `image` may refer to."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """A PNG file (ISO 15948) of red, green and blue or, with 4 channels, of opacity too."""
    high, wide, channels = pixels.shape
    rows = np.concatenate([np.zeros((high, 1), np.uint8), pixels.reshape(high, -1)], axis=1)  # 0: no filter
    head = struct.pack(">IIBBBBB", wide, high, 8, 2 if channels == 3 else 6, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in parts)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


HOW_TO_INSTALL = "the report needs jinja2; pip install 'headway[report]' and try again"


@dataclass(frozen=True)
class Picture:
    """A figure of the page: an SVG text, or a matplotlib figure, which is turned into one."""

    title: str
    caption: str
    figure: str | Figure
    wide: bool = False


@dataclass(frozen=True)
class Sections:
    """What a page shows, as plain data. What is empty is left out."""

    title: str
    subtitle: str = ""
    headline: Mapping[str, Any] = field(default_factory=dict)
    curves: Sequence[Picture] = ()
    scores: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, str]] = ()
    pictures: Sequence[Picture] = ()
    table: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""


def available() -> bool:
    """Whether reports can be written here (the extra `report`)."""
    from importlib.util import find_spec

    return find_spec("jinja2") is not None


def write_report(run_directory: Path | str, sections: Sections) -> Path:
    """Write `report.html` into a directory and return its path; UserError without the extra `report`."""
    path = Path(run_directory) / "report.html"
    write_text(path, render(sections))
    return path


def render(sections: Sections) -> str:
    """The page as HTML."""
    return environment().get_template("page.html").render(page=sections)


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of `folders` beside those here, which have the style and the parts that pages share; UserError without
    the extra `report`.
    """
    if not available():
        raise UserError(HOW_TO_INSTALL)
    return _environment(folders)


@functools.cache  # with the templates, which take longer to compile than to fill in
def _environment(folders: tuple[Path, ...]) -> jinja2.Environment:
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters.update(svg=_markup, value=value, branches=branches, breadths=breadths)
    return found


def _markup(figure: str | Figure) -> Any:
    from markupsafe import Markup

    if isinstance(figure, str):
        return Markup(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    drawing = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return Markup(f'<div class="plate">{drawing}</div>')


def value(item: Any) -> str:
    """A value as the page shows it."""
    if item is None:
        return "none"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, float):
        return short(item)
    if isinstance(item, (list, tuple)):
        return ", ".join(value(i) for i in item)
    return str(item)


_SHORT = 24  # characters of a cell that is not broken into lines


def breadths(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Whether the cells of a table's columns are "short", or "long" texts that are broken into lines."""
    longest = {name: max(len(value(row[name])) for row in rows if name in row) for name in rows[0]}
    return {name: "long" if length > _SHORT else "short" for name, length in longest.items()}


class TreeNode(NamedTuple):
    """A node of a configuration's tree: it has either children or a text."""

    name: str
    kind: str
    children: Mapping[str, Any] | Sequence[Any] | None
    text: str


def branches(node: Mapping[str, Any] | Sequence[Any]) -> list[TreeNode]:
    """The branches of a node; equal neighbours of a list (the blocks of a stack) become one."""
    if isinstance(node, Mapping):
        return [_branch(str(name), item) for name, item in node.items() if name != "kind"]
    found: list[tuple[int, int, Any]] = []
    for index, item in enumerate(node):
        if found and found[-1][2] == item:
            found[-1] = (found[-1][0], index, item)
        else:
            found.append((index, index, item))
    return [_branch(str(a) if a == b else f"{a} to {b}", item) for a, b, item in found]


def _branch(name: str, item: Any) -> TreeNode:
    if isinstance(item, Mapping):
        inner = {key: value for key, value in item.items() if key != "kind"}
        return TreeNode(name, str(item.get("kind", "")), inner or None, "" if "kind" in item else "none")
    if isinstance(item, (list, tuple)) and item and isinstance(item[0], (Mapping, list, tuple)):
        return TreeNode(name, "", item, "")
    return TreeNode(name, "", None, value(item))


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
    cells = []
    for tile in tiles:
        kind = "" if tile.right is None else ' class="right"' if tile.right else ' class="wrong"'
        note = f"<small>{escape(tile.note)}</small>" if tile.note else ""
        told = f"<span{kind}>{escape(tile.text)}</span>{note}"
        if tile.beside is None:
            cells.append(f"<div>{_image(tile.pixels)}{told}</div>")
        else:
            cells.append(f'<div class="pair">{_image(tile.pixels)}{_image(tile.beside)}<p>{told}</p></div>')
    return f'<div class="tiles{" small" if small else ""}">{"".join(cells)}</div>'


def _image(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    step = -(-max(pixels.shape[:2]) // _LONGEST)
    shown = pixels[::step, ::step]  # every so many pixels of a large image
    drawn = ' class="pixels"' if max(shown.shape[:2]) <= _COARSE else ""
    return f'<img{drawn} alt="" src="{data_uri(shown)}">'


_FEW = 3  # answers from which on it means something that all are equal
_SHOWN = 60  # characters


def shortfalls(scores: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """What explains the scores of a model that has learnt little; nothing for one that has."""
    answered = [sample for sample in samples if "output" in sample and "reference" in sample]
    answers = {sample["output"].strip() for sample in answered}
    if len(answered) >= _FEW and len(answers) == 1 and len({sample["reference"] for sample in answered}) > 1:
        answer = shorten(answers.pop(), _SHOWN)
        told = f"the same, “{answer}”" if answer else "empty"
        yield f"All {len(answered)} answers that are shown are {told}: the model does not tell its inputs apart yet."
    if scores.get("bleu") == 0:
        yield (
            "BLEU is 0: no translation has a word in common with its reference, or none is as long as the four words "
            "that BLEU counts."
        )
    if max(scores.get("wer") or 0, scores.get("per") or 0) > 1:
        yield "An error rate is above 100 %, as more is written than there is to be said: each extra word is an error."
    for method, name in (("mase_naive", "The seasonal naive forecast"), ("mase_smoothing", "Exponential smoothing")):
        if scores.get("mase", 0.0) > scores.get(method, math.inf):
            errors = f"{short(scores[method])}, that of the forecasts {short(scores['mase'])}"
            yield f"{name} is better on this split: its mean absolute scaled error is {errors}."
    if scores.get("exact_match") == 0:
        yield "Exact match is 0: no answer is right to the letter."
    if scores.get("rare_f1") == 0:
        yield "F1 of rare classes is 0: none of their samples is found."
    if scores.get("accuracy") == 0:
        yield "Accuracy is 0: no answer is right."
    if scores.get("f1") == 0 and scores.get("recall") == 0:
        yield "F1 is 0: not one entity is found with its bounds and its kind."
    if scores.get("success_rate") == 0:
        yield "Success is 0: no episode reached what its task asks for."
