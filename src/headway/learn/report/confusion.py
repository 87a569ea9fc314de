"""Pictures of confused classes and tags, and of audio over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from headway.learn.report.charts import Axis, shorten, svg, text
from headway.learn.report.page import Picture, data_uri
from headway.metrics.classification import OUTSIDE, EntityCounts, entity_counts, entity_kind

_MOST = 24  # maximum classes in a picture: the most confused ones
_PAIRS = 10  # maximum pairs of classes in the table
_NAME = 18  # maximum characters of a name


def confusions(
    right: Int[np.ndarray, "N"],
    said: Int[np.ndarray, "N"],
    labels: Sequence[str],
    what: str,
    entities: Mapping[str, EntityCounts] | None = None,
) -> list[Picture]:
    """A confusion matrix, the most confused pairs, and the scores per class of N samples of `noun` ("test images").

    If there are many classes, only the most confused ones are shown. If samples are words of `entities`, the entities
    are scored instead of the classes.
    """
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (right, said), 1)
    kept = _kept(counts)
    part = f"; the {len(kept)} most confused of {len(labels)} classes" if len(kept) < len(labels) else ""
    answers = counts.sum(0)
    common, times = labels[int(answers.argmax())], int(answers.max())
    same = f"; {times / len(said):.0%} of the predictions are “{common}”" if 2 * times > len(said) else ""
    caption = f"{len(right):,} {what}: true class (rows) and predicted class (columns){part}{same}"
    found = [Picture("Confusions", caption, _chart(counts, kept, labels), wide=True)]
    # The most frequently confused pairs of classes.
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [
        {"class": labels[i], "predicted": labels[j], "count": f"{wrong[i, j]:,} of {counts[i].sum():,}"}
        for i, j in (map(int, np.unravel_index(place, wrong.shape)) for place in order.tolist())
        if wrong[i, j]
    ]
    long = max(map(len, labels)) > _NAME
    if pairs:
        found.append(Picture("Most confused", "true class and predicted class", _table(pairs), wide=long))
    if entities is not None:
        return [*found, Picture("Entities", f"of {what}, lowest F1 first", _table(_by_kind(entities)), wide=long)]
    told = f"of {what}, worst first{f'; {_MOST} of {len(labels)} classes' if len(labels) > _MOST else ''}"
    found.append(Picture("Classes", told, _table(_by_class(counts, labels)), wide=long))
    return found


def tag_confusions(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], what: str, entities: bool
) -> list[Picture]:
    """`confusions` of words by their tags or, if the tags mark `entities`, by entity type, with the scores of each
    type.
    """
    name = entity_kind if entities else str
    labels = sorted({name(tag) for tags in (*right, *predicted) for tag in tags}, key=lambda one: (one == OUTSIDE, one))
    numbers = {label: number for number, label in enumerate(labels)}
    words, said = (
        np.fromiter((numbers[name(tag)] for tags in each for tag in tags), np.int64) for each in (right, predicted)
    )
    counts = entity_counts(predicted, right) if entities else None
    return confusions(words, said, ["outside" if one == OUTSIDE else one for one in labels], what, counts)


def _by_kind(entities: Mapping[str, EntityCounts]) -> list[dict[str, str]]:
    """Precision, recall and F1 per entity type, lowest F1 first."""
    rows = sorted((2 * one.hits / (one.labelled + one.predicted), kind, one) for kind, one in entities.items())
    return [
        {
            "class": kind,
            "entities": f"{one.labelled:,}",
            "recall": _share(one.hits, one.labelled),
            "precision": _share(one.hits, one.predicted),
            "F1": f"{100 * f1:.1f} %",
        }
        for f1, kind, one in rows[:_MOST]
    ]


def _by_class(counts: np.ndarray, labels: Sequence[str]) -> list[dict[str, str]]:
    """Recall, precision and F1 of each class that occurs or is predicted, lowest F1 first; classes without samples come
    last.
    """
    hits, given, said = np.diag(counts), counts.sum(1), counts.sum(0)
    seen = np.flatnonzero(given + said)
    f1 = 2 * hits[seen] / (given + said)[seen]
    return [
        {
            "class": labels[row],
            "samples": f"{given[row]:,}",
            "recall": _share(hits[row], given[row]),
            "precision": _share(hits[row], said[row]),
            "F1": f"{100 * score:.1f} %" if given[row] else "-",
        }
        for _, score, row in sorted(zip((given[seen] == 0).tolist(), f1.tolist(), seen.tolist()))[:_MOST]
    ]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(_told(name, cell) for name, cell in row.items())}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _told(name: str, cell: str) -> str:
    """A table cell; names of classes may be long."""
    return f'<td class="{"label" if name in ("class", "predicted") else "short"}">{escape(cell)}</td>'


def _chart(counts: np.ndarray, kept: Sequence[int], labels: Sequence[str]) -> str:
    """A confusion matrix: true classes in rows, predicted classes in columns, shaded by the fraction of the row."""
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
            marks += _cell(room + cell * j, y, cell, count, totals[i], f"{name}, predicted {names[j]}", i == j)
    side = room + cell * len(names) + 6
    return svg(side, side, marks, "confusion matrix", natural=True)


def _kept(counts: np.ndarray) -> list[int]:
    """The classes to show, in order."""
    if len(counts) <= _MOST:
        return list(range(len(counts)))
    wrong = counts - np.diag(np.diag(counts))
    return sorted(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST].tolist())


def _cell(x: int, y: int, size: int, count: int, total: int, tip: str, right: bool) -> list[str]:
    share = count / total if total else 0.0
    kind = "cell" if right else "cell miss"
    # the square root, because the fractions of errors are small
    opacity = 0.04 if count == 0 else 0.1 + 0.9 * share**0.5
    place = f'x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" rx="1.5"'
    title = escape(f"{tip}: {count:,} of {total:,}")
    found = [f'<rect class="{kind}" {place} fill-opacity="{opacity:.3f}"><title>{title}</title></rect>']
    if count:
        ink = "count strong" if opacity > 0.55 else "count"
        found.append(text(ink, x + (size - 1) / 2, y + size / 2 + 4, f"{count}", "middle"))
    return found


_WIDTH, _NARROW = 960, 480  # widths with and without tracks or attention
_LEFT, _RIGHT = 84, 12
_HIGH, _ROW, _TRACK = 150, 14, 22  # heights of the spectrogram, of a token's attention, of a track of spans
# A colour scale from dark to light, interpolated between these points.
_SCALE = np.array([[11, 15, 38], [72, 30, 104], [168, 54, 88], [236, 122, 52], [252, 234, 166]], np.float64)
_INK = np.array([37, 99, 201], np.float64)  # colour of attention on a transparent background


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
    symbols: Sequence[str] = (),
) -> str:
    """An SVG of log-mel frames over `seconds`, low bands at the bottom, with `tracks` of spans by name, and the
    attention of each of `tokens` over the same time, in weights from 0.
    """
    tracks = tracks or {}
    alone = not tracks and attention is None
    wide, left = (_NARROW, _RIGHT) if alone else (_WIDTH, _LEFT)
    axis = Axis(0.0, seconds, left, wide - _RIGHT)
    top = 8 + _TRACK * len(tracks)
    bands = frames.T[::-1]
    lowest = float(bands.min())
    places = (bands - lowest) / ((float(bands.max()) - lowest) or 1.0) * (len(_SCALE) - 1)
    below = np.minimum(places.astype(int), len(_SCALE) - 2)
    part = (places - below)[..., None]
    coloured = (_SCALE[below] * (1 - part) + _SCALE[below + 1] * part).round().astype(np.uint8)
    marks = [_image(coloured, left, top, wide - left - _RIGHT, _HIGH)]
    for number, (name, spans) in enumerate(tracks.items()):
        y, bottom = 8 + _TRACK * number, top + _HIGH
        marks.append(text("name", _LEFT - 8, y + 14, shorten(name, 10), "end"))
        marks += [mark for span in spans for mark in _span(span, axis, y, bottom if number == 0 else None, number)]
    low = top + _HIGH + 6
    if attention is not None and len(attention):
        high = _ROW * len(attention)
        weights = attention / np.maximum(attention.max(1, keepdims=True), 1e-9)  # each row relative to its maximum
        inked = np.empty((*attention.shape, 4), np.uint8)
        inked[..., :3], inked[..., 3] = _INK.astype(np.uint8), (255 * weights).round().astype(np.uint8)
        marks.append(_image(inked, left, low, wide - left - _RIGHT, high))
        names = enumerate(symbols[: len(attention)])
        marks += [text("symbol", _LEFT - 8, low + _ROW * i + 11, shorten(name, 11), "end") for i, name in names]
        low += high + 2
    marks += [text("tick", axis.place(tick), low + 14, f"{tick:g}", "middle") for tick in axis.ticks(8)]
    marks.append(text("label", wide - _RIGHT, low + 30, "seconds", "end"))
    return svg(wide, low + 36, marks, "spectrogram", natural=True)


def _span(span: Span, axis: Axis, y: float, bottom: float | None, number: int) -> list[str]:
    """A bar with its text; if `bottom` is set, lines through the spectrogram at its start and end."""
    left, right = axis.place(span.start), axis.place(span.end)
    tip = escape(f"{span.text}: {span.start:.2f} to {span.end:.2f} s")
    marks = [
        f'<rect class="bar s{number}" x="{left:.1f}" y="{y + 2}" width="{max(1.0, right - left):.1f}" height="4">'
        f"<title>{tip}</title></rect>",
        text("symbol", (left + right) / 2, y + 18, shorten(span.text, max(1, int((right - left) / 6.5))), "middle"),
    ]
    if bottom is not None:
        marks.append(f'<path class="bound" d="M{left:.1f} {y + 20}V{bottom}M{right:.1f} {y + 20}V{bottom}"/>')
    return marks


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return f'<image {place} class="pixels" href="{data_uri(pixels)}"/>'
