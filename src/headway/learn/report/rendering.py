"""Reports of runs and comparisons as HTML: one self-contained file each."""

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
from headway.io.durable import write_text
from headway.learn.report.charts import compact_number, ellipsize

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure


def data_uri(pixels: UInt8[np.ndarray, "H W C"]) -> str:
    """An image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """Encode RGB or RGBA pixels as PNG (ISO 15948)."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # 0: no filter
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 6, 0, 0, 0)
    encoded = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")):
        encoded += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return encoded


HOW_TO_INSTALL = "the report needs jinja2; run pip install 'headway[report]' and try again"


@dataclass(frozen=True)
class Picture:
    """A figure in a report: an SVG string, or a matplotlib figure, which is converted to SVG."""

    title: str
    caption: str
    figure: str | Figure
    wide: bool = False


@dataclass(frozen=True)
class Sections:
    """The content of a report, as plain data. Empty sections are omitted."""

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
    """Whether reports can be written (the extra `report`)."""
    from importlib.util import find_spec

    return find_spec("jinja2") is not None


def write_report(run_directory: Path | str, sections: Sections) -> Path:
    """Write `report.html` into a directory and return its path; raises UserError without the extra `report`."""
    path = Path(run_directory) / "report.html"
    write_text(path, render(sections))
    return path


def render(sections: Sections) -> str:
    """The report as HTML."""
    return template_environment().get_template("page.html").render(page=sections)


def template_environment(*folders: Path) -> jinja2.Environment:
    """The templates in `folders` and in this folder, which has the shared style and macros. Raises UserError without
    the extra `report`.
    """
    if not available():
        raise UserError(HOW_TO_INSTALL)
    return _environment(folders)


@functools.cache  # caches the templates because compiling takes longer than rendering
def _environment(folders: tuple[Path, ...]) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(svg=_markup, value=format_setting, branches=branches, breadths=column_widths)
    return environment


def _markup(figure: str | Figure) -> Any:
    from markupsafe import Markup

    if isinstance(figure, str):
        return Markup(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    return Markup(f'<div class="plate">{svg_element(buffer.getvalue())}</div>')


def svg_element(drawing: str) -> str:
    """The svg element of a matplotlib drawing, without its metadata."""
    return re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)


def format_setting(item: Any) -> str:
    """A value as text for the report."""
    if item is None:
        return "none"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, float):
        return compact_number(item)
    if isinstance(item, (list, tuple)):
        return ", ".join(format_setting(i) for i in item)
    return str(item)


_SHORT_CELL = 24  # maximum characters in a cell without line breaks


def column_widths(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Whether the cells of each column are "short", or "long" with line breaks."""
    max_lengths = {name: max(len(format_setting(row[name])) for row in rows if name in row) for name in rows[0]}
    return {name: "long" if length > _SHORT_CELL else "short" for name, length in max_lengths.items()}


class TreeNode(NamedTuple):
    """A node in a configuration tree, with either children or text."""

    name: str
    kind: str
    children: Mapping[str, Any] | Sequence[Any] | None
    text: str


def branches(node: Mapping[str, Any] | Sequence[Any]) -> list[TreeNode]:
    """The branches of a node; equal neighbours in a list (the blocks of a stack) are merged."""
    if isinstance(node, Mapping):
        return [_branch(str(name), item) for name, item in node.items() if name != "kind"]
    runs: list[tuple[int, int, Any]] = []
    for index, item in enumerate(node):
        if runs and runs[-1][2] == item:
            runs[-1] = (runs[-1][0], index, item)
        else:
            runs.append((index, index, item))
    return [_branch(str(a) if a == b else f"{a} to {b}", item) for a, b, item in runs]


def _branch(name: str, item: Any) -> TreeNode:
    if isinstance(item, Mapping):
        children = {key: value for key, value in item.items() if key != "kind"}
        return TreeNode(name, str(item.get("kind", "")), children or None, "" if "kind" in item else "none")
    if isinstance(item, (list, tuple)) and item and isinstance(item[0], (Mapping, list, tuple)):
        return TreeNode(name, "", item, "")
    return TreeNode(name, "", None, format_setting(item))


_MAX_SIDE = 160  # maximum pixels per side, so that reports stay small
_PIXELATED_SIDE = 64  # maximum pixels per side for images drawn with visible pixels


class Tile(NamedTuple):
    """An image with its text, which may be correct or wrong (`is_correct`), and a note; `companion` is a second image
    on its right.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    text: str = ""
    note: str = ""
    is_correct: bool | None = None
    companion: UInt8[np.ndarray, "H W 3"] | None = None


def tile_grid(tiles: Sequence[Tile], *, small: bool = False) -> str:
    """A grid of tiles, as HTML for a Picture."""
    cells = []
    for tile in tiles:
        kind = "" if tile.is_correct is None else ' class="right"' if tile.is_correct else ' class="wrong"'
        note = f"<small>{escape(tile.note)}</small>" if tile.note else ""
        caption = f"<span{kind}>{escape(tile.text)}</span>{note}"
        if tile.companion is None:
            cells.append(f"<div>{_image(tile.pixels)}{caption}</div>")
        else:
            cells.append(f'<div class="pair">{_image(tile.pixels)}{_image(tile.companion)}<p>{caption}</p></div>')
    return f'<div class="tiles{" small" if small else ""}">{"".join(cells)}</div>'


def _image(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    step = -(-max(pixels.shape[:2]) // _MAX_SIDE)
    subsampled = pixels[::step, ::step]  # subsample large images
    css_class = ' class="pixels"' if max(subsampled.shape[:2]) <= _PIXELATED_SIDE else ""
    return f'<img{css_class} alt="" src="{data_uri(subsampled)}">'


_MIN_OUTPUTS = 3  # minimum number of outputs for which equality is worth reporting
_MAX_SHOWN = 60  # maximum characters of an output


def explain_low_scores(scores: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Sentences that explain low scores when a model has learned little."""
    complete = [sample for sample in samples if "output" in sample and "reference" in sample]
    outputs = {sample["output"].strip() for sample in complete}
    if len(complete) >= _MIN_OUTPUTS and len(outputs) == 1 and len({sample["reference"] for sample in complete}) > 1:
        answer = ellipsize(outputs.pop(), _MAX_SHOWN)
        description = f"the same (“{answer}”)" if answer else "an empty"
        yield f"All {len(complete)} samples have {description} output: the model cannot tell its inputs apart yet."
    if scores.get("bleu") == 0:
        yield (
            "BLEU is 0: no translation shares a word with its reference, or all are shorter than the four words that "
            "BLEU counts."
        )
    if max(scores.get("wer") or 0, scores.get("per") or 0) > 1:
        yield "An error rate is above 100 % because the outputs are too long: each extra word is an error."
    for method, name in (("mase_naive", "The seasonal naive forecast"), ("mase_smoothing", "Exponential smoothing")):
        if scores.get("mase", 0.0) > scores.get(method, math.inf):
            errors = f"{compact_number(scores[method])}, compared with {compact_number(scores['mase'])} for the model"
            yield f"{name} is better on this split: its mean absolute scaled error is {errors}."
    if scores.get("exact_match") == 0:
        yield "Exact match is 0: no output equals its reference."
    if scores.get("rare_f1") == 0:
        yield "F1 for rare classes is 0: none of their samples is classified correctly."
    if scores.get("accuracy") == 0:
        yield "Accuracy is 0: no output is correct."
    if scores.get("f1") == 0 and scores.get("recall") == 0:
        yield "F1 is 0: no entity has the correct boundaries and type."
    if scores.get("success_rate") == 0:
        yield "The success rate is 0: no episode achieved the goal of its task."
