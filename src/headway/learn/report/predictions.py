"""Pictures of regression and multi-label predictions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Bool, Float

from headway.learn.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, frame, svg
from headway.learn.report.rendering import Picture

_MAX_POINTS = 600  # maximum points in a chart
_MAX_LABELS = 40  # maximum labels in a table


def scatter_chart(actual: Float[np.ndarray, "N"], predicted: Float[np.ndarray, "N"], x_label: str, y_label: str) -> str:
    """A scatter chart with the line y = x and a dot per sample, evenly subsampled if there are many."""
    selected = np.linspace(0, len(actual) - 1, min(len(actual), _MAX_POINTS)).astype(np.int64)
    actual, predicted = actual[selected], predicted[selected]
    low, high = float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))
    margin = 0.03 * (high - low)
    x_axis = Axis(low - margin, high + margin, LEFT, WIDTH - RIGHT)
    y_axis = Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP)
    elements = frame(x_axis, y_axis, x_label)
    diagonal = " ".join(f"{x_axis.position(end):.1f},{y_axis.position(end):.1f}" for end in (low, high))
    elements.append(f'<polyline class="curve s1 dashed" points="{diagonal}"/>')
    for x, y in zip(actual.tolist(), predicted.tolist()):
        center = f'cx="{x_axis.position(x):.1f}" cy="{y_axis.position(y):.1f}"'
        elements.append(f'<circle class="dot s0" {center} r="2.5" fill-opacity="0.6"/>')
    return svg(WIDTH, HEIGHT, elements, f"{y_label} over {x_label}")


def label_table(
    predicted: Bool[np.ndarray, "N C"],
    actual: Bool[np.ndarray, "N C"],
    labels: Sequence[str],
    thresholds: Sequence[float],
    noun: str,
) -> Picture:
    """Scores per label on N samples called `noun`, lowest F1 first."""
    hits, actual_counts, predicted_counts = (predicted & actual).sum(0), actual.sum(0), predicted.sum(0)
    f1 = 2 * hits / np.maximum(actual_counts + predicted_counts, 1)
    order = np.lexsort((-actual_counts, f1))[:_MAX_LABELS]
    rows = "".join(
        f'<tr><td class="label">{escape(labels[label])}</td>'
        + "".join(
            f'<td class="short">{cell}</td>'
            for cell in (
                f"{actual_counts[label]:,}",
                _share(hits[label], actual_counts[label]),
                _share(hits[label], predicted_counts[label]),
                _share(2 * hits[label], actual_counts[label] + predicted_counts[label]),
                f"{thresholds[label]:.2g}",
            )
        )
        + "</tr>"
        for label in map(int, order)
    )
    head = "".join(f"<th>{name}</th>" for name in ("label", "samples", "recall", "precision", "F1", "threshold"))
    selection = f"; {_MAX_LABELS} of {len(labels)} labels" if len(labels) > _MAX_LABELS else ""
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    caption = f"of {len(predicted):,} {noun}, worst first{selection}; labels are predicted at or above their thresholds"
    return Picture("Labels", caption, table, wide=True)


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"
