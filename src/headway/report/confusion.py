"""What is taken for what: a matrix of counts as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Int

from headway.report.charts import shorten, svg, text

_MOST = 24  # classes that a picture shows: those that are mistaken most
_NAME = 18  # characters


def confusion_chart(right: Int[np.ndarray, "N"], said: Int[np.ndarray, "N"], labels: Sequence[str]) -> str:
    """A cell for each class that a sample has (downwards) and that is said of it, as dark as the share of the row.

    Of many classes, those are shown that are mistaken most.
    """
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (right, said), 1)
    kept = _kept(counts)
    totals = counts.sum(1)[kept]
    counts, names = counts[np.ix_(kept, kept)], [labels[number] for number in kept]
    room = 16 + 7 * max(len(shorten(name, _NAME)) for name in names)
    cell = max(22, min(44, (920 - room) // len(names)))
    marks = []
    tilted = any(len(name) > 2 for name in names)
    for j, name in enumerate(names):
        x = room + cell * j + (cell // 2 + 4 if tilted else (cell - 1) / 2)
        marks.append(text("symbol", x, room - 8, shorten(name, _NAME), "start" if tilted else "middle", turn=tilted))
    for i, name in enumerate(names):
        y = room + cell * i
        marks.append(text("symbol", room - 8, y + cell // 2 + 4, shorten(name, _NAME), "end"))
        for j, count in enumerate(counts[i].tolist()):
            marks += _cell(room + cell * j, y, cell, count, totals[i], f"{name}, said {names[j]}", i == j)
    side = room + cell * len(names) + 6
    return svg(side, side, marks, "what is taken for what", natural=True)


def _kept(counts: np.ndarray) -> list[int]:
    """The classes to show, in their order."""
    if len(counts) <= _MOST:
        return list(range(len(counts)))
    wrong = counts - np.diag(np.diag(counts))
    return sorted(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST].tolist())


def _cell(x: int, y: int, size: int, count: int, total: int, tip: str, right: bool) -> list[str]:
    share = count / total if total else 0.0
    kind = "cell" if right else "cell miss"
    # the root, as the shares of mistakes are small
    opacity = 0.04 if count == 0 else 0.1 + 0.9 * share**0.5
    place = f'x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" rx="1.5"'
    title = escape(f"{tip}: {count:,} of {total:,}")
    found = [f'<rect class="{kind}" {place} fill-opacity="{opacity:.3f}"><title>{title}</title></rect>']
    if count:
        ink = "count strong" if opacity > 0.55 else "count"
        found.append(text(ink, x + (size - 1) / 2, y + size / 2 + 4, f"{count}", "middle"))
    return found
