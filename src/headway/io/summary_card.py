"""Summaries of models, runs and results: one line at a prompt, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

T = TypeVar("T")
_MAX_VALUE_LENGTH = 60  # maximum characters of a value in a line
_MAX_ROWS = 50  # maximum rows of a table in a notebook


@dataclass(frozen=True)
class SummaryCard:
    """A title, facts by name (None values are left out), and, for notebooks, table rows and a link to a file."""

    title: str
    facts: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    link: Path | str | None = None

    def text(self) -> str:
        """The summary as one line."""
        facts = [
            f"{name} {_format_value(value, _MAX_VALUE_LENGTH)}"
            for name, value in self.facts.items()
            if value is not None
        ]
        if self.link is not None:
            facts.append(f"report {self.link}")
        return f"{self.title}: {', '.join(facts)}" if facts else self.title

    def html(self) -> str:
        """The title, a table of the facts, a table of the rows, and the link as HTML."""
        facts = [[name, _format_value(value)] for name, value in self.facts.items() if value is not None]
        parts = [f"<strong>{escape(self.title)}</strong>"]
        if facts:
            parts.append(_html_table([], facts))
        if self.rows:
            names = list(self.rows[0])
            parts.append(
                _html_table(names, [[_format_value(row.get(name)) for name in names] for row in self.rows[:_MAX_ROWS]])
            )
        if len(self.rows) > _MAX_ROWS:
            parts.append(f"<p>and {len(self.rows) - _MAX_ROWS:,} more</p>")
        if self.link is not None:
            parts.append(f'<p><a href="{quote(Path(self.link).as_posix())}">report</a></p>')
        return f"<div>{''.join(parts)}</div>"


class _HasCard(Protocol):
    def card(self) -> SummaryCard: ...


def summary_repr(cls: type[T]) -> type[T]:
    """Decorate a class so that its repr and its notebook HTML come from its `card()`."""

    def line(self: _HasCard) -> str:
        return self.card().text()

    def table(self: _HasCard) -> str:
        return self.card().html()

    cls.__repr__ = line  # type: ignore[assignment]
    cls._repr_html_ = table  # type: ignore[attr-defined]
    return cls


def main_scores(scores: Mapping[str, Any], limit: int = 3) -> dict[str, float]:
    """The first scores of an evaluation."""
    numbers = {name: item for name, item in scores.items() if isinstance(item, float) and not name.startswith("judg")}
    return dict(list(numbers.items())[:limit])


def _format_value(value: Any, max_length: int | None = None) -> str:
    """A value formatted for people, on one line."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if max_length is None:
        return str(value)
    text = " ".join(str(value).split())
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    style = ' style="text-align: left; padding: 0 1em 0 0"'
    header = f"<tr>{''.join(f'<th{style}>{escape(name)}</th>' for name in names)}</tr>" if names else ""
    body = "".join(f"<tr>{''.join(f'<td{style}>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table>{header}{body}</table>"
