"""A run's page and a comparison's page: one file each, which needs nothing from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headway.checkpoints.durable import write_text
from headway.errors import UserError
from headway.report.charts import short

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

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
    """Templates of `folders` beside those here, which have the style and the parts that pages share."""
    try:
        import jinja2
    except ImportError:
        raise UserError(HOW_TO_INSTALL) from None
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters.update(svg=_markup, value=value, branches=branches)
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


class Branch(NamedTuple):
    """A node of a configuration's tree: it has either children or a text."""

    name: str
    kind: str
    children: Mapping[str, Any] | Sequence[Any] | None
    text: str


def branches(node: Mapping[str, Any] | Sequence[Any]) -> list[Branch]:
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


def _branch(name: str, item: Any) -> Branch:
    if isinstance(item, Mapping):
        inner = {key: value for key, value in item.items() if key != "kind"}
        return Branch(name, str(item.get("kind", "")), inner or None, "" if "kind" in item else "none")
    if isinstance(item, (list, tuple)) and item and isinstance(item[0], (Mapping, list, tuple)):
        return Branch(name, "", item, "")
    return Branch(name, "", None, value(item))
