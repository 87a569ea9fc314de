"""Pictures of predictions, spectrograms and film strips for reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from html import escape
from typing import NamedTuple, ParamSpec

import numpy as np
from jaxtyping import Bool, Float, Int

from headway.errors import UserError, logger
from headway.learn.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, ellipsize, frame, svg, text
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
    wrong = counts - np.diag(np.diag(counts))
    shown_classes = list(range(len(counts)))
    if len(counts) > _MAX_CLASSES:
        most_confused = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MAX_CLASSES]
        shown_classes = sorted(most_confused.tolist())
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
        rows = sorted((2 * c.hits / (c.labelled + c.predicted), kind, c) for kind, c in entities.items())
        scores = [
            {
                "class": kind,
                "entities": f"{count.labelled:,}",
                "recall": _share(count.hits, count.labelled),
                "precision": _share(count.hits, count.predicted),
                "F1": f"{100 * f1:.1f} %",
            }
            for f1, kind, count in rows[:_MAX_CLASSES]
        ]
        table = [Picture("Entities", f"of {noun}, lowest F1 first", _table(scores), wide=is_long)] if scores else []
        return [*pictures, *table]
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
    body = ""
    for row in rows:
        body += "<tr>"
        for name, cell in row.items():  # names of classes and labels may be long
            is_name = name in ("class", "predicted", "label")
            body += f'<td class="{"label" if is_name else "short"}">{escape(cell)}</td>'
        body += "</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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
            x = margin + cell * j
            # the square root, because error fractions are small
            opacity = 0.04 if count == 0 else 0.1 + 0.9 * (count / totals[i] if totals[i] else 0.0) ** 0.5
            rectangle = f'x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" rx="1.5" fill-opacity="{opacity:.3f}"'
            title = escape(f"{name}, predicted {names[j]}: {count:,} of {totals[i]:,}")
            kind = "cell" if i == j else "cell miss"
            elements.append(f'<rect class="{kind}" {rectangle}><title>{title}</title></rect>')
            if count:
                ink = "count strong" if opacity > 0.55 else "count"
                elements.append(text(ink, x + (cell - 1) / 2, y + cell / 2 + 4, f"{count}", "middle"))
    size = margin + cell * len(names) + 6
    return svg(size, size, elements, "confusion matrix", natural=True)


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
        for span in spans:  # a bar with its text; in the first track, with lines through the spectrogram at its ends
            start, end = axis.position(span.start), axis.position(span.end)
            tip = escape(f"{span.text}: {span.start:.2f} to {span.end:.2f} s")
            bar = f'x="{start:.1f}" y="{y + 2}" width="{max(1.0, end - start):.1f}" height="4"'
            elements.append(f'<rect class="bar s{number}" {bar}><title>{tip}</title></rect>')
            name = ellipsize(span.text, max(1, int((end - start) / 6.5)))
            elements.append(text("symbol", (start + end) / 2, y + 18, name, "middle"))
            if number == 0:
                path = f"M{start:.1f} {y + 20}V{bottom}M{end:.1f} {y + 20}V{bottom}"
                elements.append(f'<path class="bound" d="{path}"/>')
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


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    attributes = f'x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return f'<image {attributes} class="pixels" href="{data_uri(pixels)}"/>'


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
    rows = [
        {
            "label": labels[label],
            "samples": f"{actual_counts[label]:,}",
            "recall": _share(hits[label], actual_counts[label]),
            "precision": _share(hits[label], predicted_counts[label]),
            "F1": _share(2 * hits[label], actual_counts[label] + predicted_counts[label]),
            "threshold": f"{thresholds[label]:.2g}",
        }
        for label in map(int, order)
    ]
    selection = f"; {_MAX_LABELS} of {len(labels)} labels" if len(labels) > _MAX_LABELS else ""
    caption = f"of {len(predicted):,} {noun}, worst first{selection}; labels are predicted at or above their thresholds"
    return Picture("Labels", caption, _table(rows), wide=True)


P = ParamSpec("P")
_LOG = logger(__name__)
_MIN_STRIP_WIDTH = 640  # minimum width of a strip in pixels; on narrow pages it scrolls


class FilmedEpisode(NamedTuple):
    """A played episode with its frames."""

    title: str
    caption: str
    reel: FrameSampler


def episode_pictures(episodes: Callable[P, Iterator[FilmedEpisode]]) -> Callable[P, list[Picture]]:
    """Decorate a generator of episodes to return their pictures. If they cannot be rendered, there are none, and the
    reason is logged.
    """

    @wraps(episodes)
    def pictures(*args: P.args, **settings: P.kwargs) -> list[Picture]:
        try:
            filmed_episodes = episodes(*args, **settings)
            return [Picture(title, caption, strip(reel.frames), wide=True) for title, caption, reel in filmed_episodes]
        except UserError as error:
            _LOG.warning("cannot render episodes for the report: %s", error)
            return []

    return pictures


class FrameSampler:
    """At most `max_frames` evenly spaced frames, with their steps, from one episode of any length."""

    episodes = 1

    def __init__(self, max_frames: int = 32) -> None:
        self.max_frames, self.frames = max_frames, list[tuple[int, np.ndarray]]()
        self._step, self._interval = 0, 1

    def step(self, render: Callable[[], np.ndarray], episode: int = 0, return_so_far: float = 0.0) -> None:
        """Record a step; calls `render` only if its frame is needed."""
        if self._step % self._interval == 0:
            self.frames.append((self._step, render()))
        self._step += 1
        if len(self.frames) == self.max_frames:
            self.frames, self._interval = self.frames[::2], 2 * self._interval

    def end(self, render: Callable[[], np.ndarray], episode: int = 0, return_so_far: float = 0.0) -> None:
        """Ignore the final state."""


def strip(frames: Sequence[tuple[int, np.ndarray]], count: int = 8, height: int = 96) -> str:
    """At most `count` evenly spaced frames, side by side, as an SVG with embedded pixels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("rendering episodes needs pillow; run pip install 'headway[rl]'") from error
    indices = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    gap, x, elements = 4, 0, []
    for step, pixels in (frames[index] for index in indices.tolist()):
        image = Image.fromarray(pixels)
        width = max(1, round(image.width * height / image.height))
        buffer = io.BytesIO()
        image.resize((width, height)).save(buffer, "PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        elements.append(f'<image x="{x}" y="0" width="{width}" height="{height}" href="data:image/png;base64,{data}"/>')
        elements.append(f'<rect class="border" x="{x}.5" y=".5" width="{width - 1}" height="{height - 1}"/>')
        elements.append(f'<text class="tick" x="{x + 2}" y="{height + 14}">{step}</text>')
        x += width + gap
    size = f"0 0 {x - gap} {height + 18}"
    attributes = 'role="img" aria-label="frames of an episode, by step"'
    return f'<svg viewBox="{size}" {attributes} style="min-width:{_MIN_STRIP_WIDTH}px">{"".join(elements)}</svg>'
