"""Pictures of confused classes and tags, and of audio over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from headway.learn.report.charts import Axis, ellipsize, svg, text
from headway.learn.report.rendering import Picture, data_uri
from headway.metrics.classification import OUTSIDE, EntityCounts, entity_counts, entity_kind

_MAX_CLASSES = 24  # maximum classes in a picture; only the most confused ones are shown
_MAX_PAIRS = 10  # maximum pairs of classes in the table
_MAX_NAME = 18  # maximum characters of a name


def confusions(
    targets: Int[np.ndarray, "N"],
    predicted: Int[np.ndarray, "N"],
    labels: Sequence[str],
    noun: str,
    entities: Mapping[str, EntityCounts] | None = None,
) -> list[Picture]:
    """A confusion matrix, the most confused pairs, and scores per class for N samples called `noun` ("test images").

    If there are many classes, only the most confused ones are shown. If samples are words that belong to `entities`,
    the entities are scored instead of the classes.
    """
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    shown_classes = _most_confused(counts)
    selection = (
        f"; the {len(shown_classes)} most confused of {len(labels)} classes" if len(shown_classes) < len(labels) else ""
    )
    predicted_counts = counts.sum(0)
    most_common, most_common_count = labels[int(predicted_counts.argmax())], int(predicted_counts.max())
    dominance = (
        f"; {most_common_count / len(predicted):.0%} of the predictions are “{most_common}”"
        if 2 * most_common_count > len(predicted)
        else ""
    )
    caption = f"{len(targets):,} {noun}: true class (rows) and predicted class (columns){selection}{dominance}"
    pictures = [Picture("Confusions", caption, _chart(counts, shown_classes, labels), wide=True)]
    # The most frequently confused pairs of classes.
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    pairs = [
        {"class": labels[i], "predicted": labels[j], "count": f"{wrong[i, j]:,} of {counts[i].sum():,}"}
        for i, j in (map(int, np.unravel_index(index, wrong.shape)) for index in order.tolist())
        if wrong[i, j]
    ]
    is_long = max(map(len, labels)) > _MAX_NAME
    if pairs:
        pictures.append(Picture("Most confused", "true class and predicted class", _table(pairs), wide=is_long))
    if entities is not None:
        return [*pictures, Picture("Entities", f"of {noun}, lowest F1 first", _table(_by_kind(entities)), wide=is_long)]
    caption_text = (
        f"of {noun}, worst first{f'; {_MAX_CLASSES} of {len(labels)} classes' if len(labels) > _MAX_CLASSES else ''}"
    )
    pictures.append(Picture("Classes", caption_text, _table(_by_class(counts, labels)), wide=is_long))
    return pictures


def tag_confusions(
    true_tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], noun: str, entities: bool
) -> list[Picture]:
    """`confusions` for words by tag or, if the tags mark `entities`, by entity type, with scores per type."""
    name = entity_kind if entities else str
    labels = sorted(
        {name(tag) for tags in (*true_tags, *predicted) for tag in tags}, key=lambda label: (label == OUTSIDE, label)
    )
    indices = {label: number for number, label in enumerate(labels)}
    true_words, predicted_words = (
        np.fromiter((indices[name(tag)] for tags in sentences for tag in tags), np.int64)
        for sentences in (true_tags, predicted)
    )
    counts = entity_counts(predicted, true_tags) if entities else None
    return confusions(
        true_words, predicted_words, ["outside" if label == OUTSIDE else label for label in labels], noun, counts
    )


def _by_kind(entities: Mapping[str, EntityCounts]) -> list[dict[str, str]]:
    """Precision, recall and F1 per entity type, lowest F1 first."""
    rows = sorted(
        (2 * entity_count.hits / (entity_count.labelled + entity_count.predicted), kind, entity_count)
        for kind, entity_count in entities.items()
    )
    return [
        {
            "class": kind,
            "entities": f"{entity_count.labelled:,}",
            "recall": _share(entity_count.hits, entity_count.labelled),
            "precision": _share(entity_count.hits, entity_count.predicted),
            "F1": f"{100 * f1:.1f} %",
        }
        for f1, kind, entity_count in rows[:_MAX_CLASSES]
    ]


def _by_class(counts: np.ndarray, labels: Sequence[str]) -> list[dict[str, str]]:
    """Recall, precision and F1 for each class that occurs or is predicted, lowest F1 first; classes without samples
    come last.
    """
    hits, actual, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    occurring = np.flatnonzero(actual + predicted)
    f1 = 2 * hits[occurring] / (actual + predicted)[occurring]
    return [
        {
            "class": labels[row],
            "samples": f"{actual[row]:,}",
            "recall": _share(hits[row], actual[row]),
            "precision": _share(hits[row], predicted[row]),
            "F1": f"{100 * score:.1f} %" if actual[row] else "-",
        }
        for _, score, row in sorted(zip((actual[occurring] == 0).tolist(), f1.tolist(), occurring.tolist()))[
            :_MAX_CLASSES
        ]
    ]


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(_table_cell(name, cell) for name, cell in row.items())}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_cell(name: str, cell: str) -> str:
    """A table cell; class names may be long."""
    return f'<td class="{"label" if name in ("class", "predicted") else "short"}">{escape(cell)}</td>'


def _chart(counts: np.ndarray, shown_classes: Sequence[int], labels: Sequence[str]) -> str:
    """A confusion matrix: true classes in rows, predicted classes in columns, shaded by their fraction of the row."""
    totals = counts.sum(1)[shown_classes]
    counts, names = counts[np.ix_(shown_classes, shown_classes)], [labels[number] for number in shown_classes]
    margin = 16 + 7 * max(len(ellipsize(name, _MAX_NAME)) for name in names)
    cell = max(22, min(44, (920 - margin) // len(names)))
    elements = []
    tilted = any(len(name) > 2 for name in names)
    for j, name in enumerate(names):
        x = margin + cell * j + (cell // 2 + 4 if tilted else (cell - 1) / 2)
        elements.append(
            text("symbol", x, margin - 8, ellipsize(name, _MAX_NAME), "start" if tilted else "middle", rotate=tilted)
        )
    for i, name in enumerate(names):
        y = margin + cell * i
        elements.append(text("symbol", margin - 8, y + cell // 2 + 4, ellipsize(name, _MAX_NAME), "end"))
        for j, count in enumerate(counts[i].tolist()):
            elements += _cell(margin + cell * j, y, cell, count, totals[i], f"{name}, predicted {names[j]}", i == j)
    size = margin + cell * len(names) + 6
    return svg(size, size, elements, "confusion matrix", natural=True)


def _most_confused(counts: np.ndarray) -> list[int]:
    """The classes to show, in order."""
    if len(counts) <= _MAX_CLASSES:
        return list(range(len(counts)))
    wrong = counts - np.diag(np.diag(counts))
    return sorted(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MAX_CLASSES].tolist())


def _cell(x: int, y: int, size: int, count: int, total: int, tip: str, is_diagonal: bool) -> list[str]:
    share = count / total if total else 0.0
    kind = "cell" if is_diagonal else "cell miss"
    # the square root, because error fractions are small
    opacity = 0.04 if count == 0 else 0.1 + 0.9 * share**0.5
    rectangle = f'x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" rx="1.5"'
    title = escape(f"{tip}: {count:,} of {total:,}")
    elements = [f'<rect class="{kind}" {rectangle} fill-opacity="{opacity:.3f}"><title>{title}</title></rect>']
    if count:
        ink = "count strong" if opacity > 0.55 else "count"
        elements.append(text(ink, x + (size - 1) / 2, y + size / 2 + 4, f"{count}", "middle"))
    return elements


_WIDTH, _NARROW_WIDTH = 960, 480  # widths with and without tracks or attention
_LEFT, _RIGHT = 84, 12
_SPECTROGRAM_HEIGHT, _ROW_HEIGHT, _TRACK_HEIGHT = (
    150,
    14,
    22,
)  # heights of the spectrogram, a token's attention, and a track of spans
# A colour scale from dark to light, interpolated between these points.
_SCALE = np.array([[11, 15, 38], [72, 30, 104], [168, 54, 88], [236, 122, 52], [252, 234, 166]], np.float64)
_ATTENTION_COLOUR = np.array([37, 99, 201], np.float64)  # colour of attention on a transparent background


class Span(NamedTuple):
    """The text between two times, in seconds."""

    text: str
    start: float
    end: float


def spectrogram(
    frames: Float[np.ndarray, "T M"],
    seconds: float,
    tracks: Mapping[str, Sequence[Span]] | None = None,
    attention: Float[np.ndarray, "N S"] | None = None,
    tokens: Sequence[str] = (),
) -> str:
    """An SVG with log-mel frames over `seconds`, low bands at the bottom, `tracks` of spans by name, and each token's
    attention weights (0 or more) over the same time.
    """
    tracks = tracks or {}
    is_plain = not tracks and attention is None
    width, left = (_NARROW_WIDTH, _RIGHT) if is_plain else (_WIDTH, _LEFT)
    axis = Axis(0.0, seconds, left, width - _RIGHT)
    top = 8 + _TRACK_HEIGHT * len(tracks)
    bands = frames.T[::-1]
    lowest = float(bands.min())
    scale_positions = (bands - lowest) / ((float(bands.max()) - lowest) or 1.0) * (len(_SCALE) - 1)
    lower_index = np.minimum(scale_positions.astype(int), len(_SCALE) - 2)
    fraction = (scale_positions - lower_index)[..., None]
    coloured = (_SCALE[lower_index] * (1 - fraction) + _SCALE[lower_index + 1] * fraction).round().astype(np.uint8)
    elements = [_image(coloured, left, top, width - left - _RIGHT, _SPECTROGRAM_HEIGHT)]
    for number, (name, spans) in enumerate(tracks.items()):
        y, bottom = 8 + _TRACK_HEIGHT * number, top + _SPECTROGRAM_HEIGHT
        elements.append(text("name", _LEFT - 8, y + 14, ellipsize(name, 10), "end"))
        elements += [mark for span in spans for mark in _span(span, axis, y, bottom if number == 0 else None, number)]
    y_below = top + _SPECTROGRAM_HEIGHT + 6
    if attention is not None and len(attention):
        attention_height = _ROW_HEIGHT * len(attention)
        weights = attention / np.maximum(attention.max(1, keepdims=True), 1e-9)  # each row relative to its maximum
        inked = np.empty((*attention.shape, 4), np.uint8)
        inked[..., :3], inked[..., 3] = _ATTENTION_COLOUR.astype(np.uint8), (255 * weights).round().astype(np.uint8)
        elements.append(_image(inked, left, y_below, width - left - _RIGHT, attention_height))
        names = enumerate(tokens[: len(attention)])
        elements += [
            text("symbol", _LEFT - 8, y_below + _ROW_HEIGHT * i + 11, ellipsize(name, 11), "end") for i, name in names
        ]
        y_below += attention_height + 2
    elements += [text("tick", axis.position(tick), y_below + 14, f"{tick:g}", "middle") for tick in axis.ticks(8)]
    elements.append(text("label", width - _RIGHT, y_below + 30, "seconds", "end"))
    return svg(width, y_below + 36, elements, "spectrogram", natural=True)


def _span(span: Span, axis: Axis, y: float, bottom: float | None, number: int) -> list[str]:
    """A bar with its text; if `bottom` is set, with lines through the spectrogram at its start and end."""
    left, right = axis.position(span.start), axis.position(span.end)
    tip = escape(f"{span.text}: {span.start:.2f} to {span.end:.2f} s")
    elements = [
        f'<rect class="bar s{number}" x="{left:.1f}" y="{y + 2}" width="{max(1.0, right - left):.1f}" height="4">'
        f"<title>{tip}</title></rect>",
        text("symbol", (left + right) / 2, y + 18, ellipsize(span.text, max(1, int((right - left) / 6.5))), "middle"),
    ]
    if bottom is not None:
        elements.append(f'<path class="bound" d="M{left:.1f} {y + 20}V{bottom}M{right:.1f} {y + 20}V{bottom}"/>')
    return elements


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    attributes = f'x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return f'<image {attributes} class="pixels" href="{data_uri(pixels)}"/>'
