"""How models, runs and results show themselves: a line at a prompt, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

T = TypeVar("T")
_LONGEST = 60  # characters of a text in a line
_ROWS = 50  # of a table in a notebook


@dataclass(frozen=True)
class Card:
    """What something is and where it lies, its facts by name (those that are None are left out), and, for notebooks,
    rows of a table and a file to open.
    """

    title: str
    facts: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    link: Path | str | None = None

    def text(self) -> str:
        """One line."""
        facts = [f"{name} {_said(value, _LONGEST)}" for name, value in self.facts.items() if value is not None]
        if self.link is not None:
            facts.append(f"report {self.link}")
        return f"{self.title}: {', '.join(facts)}" if facts else self.title

    def html(self) -> str:
        """A title, a table of the facts, one of the rows, and a link."""
        facts = [[name, _said(value)] for name, value in self.facts.items() if value is not None]
        parts = [f"<strong>{escape(self.title)}</strong>"]
        if facts:
            parts.append(_table([], facts))
        if self.rows:
            names = list(self.rows[0])
            parts.append(_table(names, [[_said(row.get(name)) for name in names] for row in self.rows[:_ROWS]]))
        if len(self.rows) > _ROWS:
            parts.append(f"<p>and {len(self.rows) - _ROWS:,} more</p>")
        if self.link is not None:
            parts.append(f'<p><a href="{quote(Path(self.link).as_posix())}">report</a></p>')
        return f"<div>{''.join(parts)}</div>"


class _Carded(Protocol):
    def card(self) -> Card: ...


def shows(cls: type[T]) -> type[T]:
    """A class whose values show themselves by their `card()`."""

    def line(self: _Carded) -> str:
        return self.card().text()

    def table(self: _Carded) -> str:
        return self.card().html()

    cls.__repr__ = line  # type: ignore[assignment]
    cls._repr_html_ = table  # type: ignore[attr-defined]
    return cls


def figures(scores: Mapping[str, Any], most: int = 3) -> dict[str, float]:
    """The first numbers of an evaluation."""
    found = {name: item for name, item in scores.items() if isinstance(item, float) and not name.startswith("judg")}
    return dict(list(found.items())[:most])


def _said(value: Any, longest: int | None = None) -> str:
    """A value for people, on one line."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if longest is None:
        return str(value)
    text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    style = ' style="text-align: left; padding: 0 1em 0 0"'
    head = f"<tr>{''.join(f'<th{style}>{escape(name)}</th>' for name in names)}</tr>" if names else ""
    body = "".join(f"<tr>{''.join(f'<td{style}>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"
