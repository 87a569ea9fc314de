"""Pictures of regression and multi-label predictions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Bool, Float

from headway.learn.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, frame, svg
from headway.learn.report.page import Picture

_POINTS = 600  # maximum points of a chart
_MOST = 40  # maximum labels of a table


def scatter_chart(right: Float[np.ndarray, "N"], said: Float[np.ndarray, "N"], x_label: str, y_label: str) -> str:
    """A scatter chart with a dot per sample, evenly subsampled if there are many, and the line y = x."""
    kept = np.linspace(0, len(right) - 1, min(len(right), _POINTS)).astype(np.int64)
    right, said = right[kept], said[kept]
    low, high = float(min(right.min(), said.min())), float(max(right.max(), said.max()))
    room = 0.03 * (high - low)
    x_axis = Axis(low - room, high + room, LEFT, WIDTH - RIGHT)
    y_axis = Axis(low - room, high + room, HEIGHT - BOTTOM, TOP)
    marks = frame(x_axis, y_axis, x_label)
    ends = " ".join(f"{x_axis.place(end):.1f},{y_axis.place(end):.1f}" for end in (low, high))
    marks.append(f'<polyline class="curve s1 dashed" points="{ends}"/>')
    marks += [
        f'<circle class="dot s0" cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="2.5" fill-opacity="0.6"/>'
        for x, y in zip(right.tolist(), said.tolist())
    ]
    return svg(WIDTH, HEIGHT, marks, f"{y_label} over {x_label}")


def label_table(
    said: Bool[np.ndarray, "N C"],
    right: Bool[np.ndarray, "N C"],
    labels: Sequence[str],
    thresholds: Sequence[float],
    what: str,
) -> Picture:
    """The scores per label on N samples of `noun`, lowest F1 first."""
    hits, given, found = (said & right).sum(0), right.sum(0), said.sum(0)
    f1 = 2 * hits / np.maximum(given + found, 1)
    order = np.lexsort((-given, f1))[:_MOST]
    rows = "".join(
        f'<tr><td class="label">{escape(labels[label])}</td>'
        + "".join(
            f'<td class="short">{cell}</td>'
            for cell in (
                f"{given[label]:,}",
                _share(hits[label], given[label]),
                _share(hits[label], found[label]),
                _share(2 * hits[label], given[label] + found[label]),
                f"{thresholds[label]:.2g}",
            )
        )
        + "</tr>"
        for label in map(int, order)
    )
    head = "".join(f"<th>{name}</th>" for name in ("label", "samples", "recall", "precision", "F1", "threshold"))
    part = f"; {_MOST} of {len(labels)} labels" if len(labels) > _MOST else ""
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    caption = f"of {len(said):,} {what}, worst first{part}; a label is predicted from its threshold on"
    return Picture("Labels", caption, table, wide=True)


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"
