"""Charts as small SVG strings that take their colours from the page's style, for light and dark mode, and matplotlib
pictures of forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from headway.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 264
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 10, 40
COLOURS = 6  # the page defines --series-0 ... --series-5
MAX_POINTS = 240
_MIN_SCALE = 0.6  # minimum scale for a drawing with small text; on narrower pages it scrolls
_MAX_DIGITS = 17  # enough digits to distinguish any two floats


class Stroke(NamedTuple):
    """The style of a curve."""

    colour: int
    dashed: bool = False

    def classes(self) -> str:
        return f"s{self.colour % COLOURS}{' dashed' if self.dashed else ''}"


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    dots: bool = False,
    share: bool = False,
    strokes: Mapping[str, Stroke] | None = None,
) -> str:
    """Curves over a common x axis. `log` uses a logarithmic y axis if all values are positive. A `share` is shown in
    per cent on an axis that starts at 0 and, if values are large, ends at 100. Colours are assigned in order, except
    for series in `strokes`.

    Points without a finite value are skipped; a chart without points is an empty string.
    """
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    finite = {name: thin(points) for name, points in finite.items() if points}
    if not finite:
        return ""
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    margin = 0.0 if log else 0.04 * (max(ys) - min(ys))
    low, high = _percent_range(max(ys)) if share else (min(ys) - margin, max(ys) + margin)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP, log=log and min(ys) > 0)
    elements = frame(x_axis, y_axis, x_label)
    # Cycle through the colours, then again with dashes.
    default_strokes = {name: Stroke(index % COLOURS, index // COLOURS % 2 == 1) for index, name in enumerate(finite)}
    css_classes = {name: (strokes or {}).get(name, stroke).classes() for name, stroke in default_strokes.items()}
    for name, points in finite.items():
        positions = [(x_axis.position(x), y_axis.position(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
        elements.append(f'<polyline class="curve {css_classes[name]}" points="{path}"/>')
        if dots or len(positions) == 1:
            elements += [
                f'<circle class="dot {css_classes[name]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in positions
            ]
    return svg(WIDTH, HEIGHT, elements, f"{y_label} over {x_label}") + legend(css_classes)


def _percent_range(maximum: float) -> tuple[float, float]:
    """The range of a percentage axis: up to 100 if the values are large, otherwise with a small margin."""
    return 0.0, max(maximum, 100.0) if maximum > 50 else 1.1 * maximum


def bar_chart(
    values: Mapping[str, float],
    label: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    *,
    share: bool = False,
) -> str:
    """One horizontal bar per name, with its value, and a whisker from low to high if the name is in `intervals`. A
    `share` is shown in per cent, on an axis that ends at 100 if values are large.
    """
    row, left, right = 30, 150, 70
    height = row * len(values) + 26
    whiskers = intervals or {}
    bounds = [0.0, *values.values(), *(edge for pair in whiskers.values() for edge in pair)]
    low, high = _percent_range(max(bounds)) if share else (min(bounds), max(bounds) if any(bounds) else 1.0)
    axis = Axis(low, high, left, WIDTH - right)
    zero = axis.position(0.0)
    elements = []
    for index, (name, value) in enumerate(values.items()):
        y, end = index * row + 5, axis.position(value)
        kind = f"bar s{index % COLOURS}"
        elements.append(
            f'<rect class="{kind}" x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" height="20" rx="2"/>'
        )
        tip = end
        if name in whiskers:
            low, tip = (axis.position(edge) for edge in whiskers[name])
            path = f"M{low:.1f} {y + 10}H{tip:.1f}M{low:.1f} {y + 5}v10M{tip:.1f} {y + 5}v10"
            elements.append(f'<path class="whisker" d="{path}"/>')
        elements.append(text("name", left - 8, y + 14, ellipsize(name, 22), "end"))
        elements.append(text("value", max(zero, end, tip) + 6, y + 14, compact_number(value)))
    elements.append(text("label", left, height - 6, label))
    return svg(WIDTH, height, elements, label)


def heatmap(weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str) -> str:
    """A heatmap of weights from 0 to 1: `weights[i][j]` belongs to `rows[i]` and `columns[j]`."""
    cell = max(12, min(30, 560 // max(len(columns), 1)))
    tilted = any(len(name) > 2 for name in columns)
    left, top = _label_width(rows), _label_width(columns) if tilted else 22
    width, height = left + cell * len(columns) + 6, top + cell * len(rows) + 6
    elements = []
    for j, name in enumerate(columns):
        x = left + cell * j + cell // 2
        if tilted:
            elements.append(text("symbol", x + 4, top - 6, ellipsize(name), rotate=True))
        else:
            elements.append(text("symbol", x, top - 6, name, "middle"))
    for i, (name, line) in enumerate(zip(rows, weights)):
        y = top + cell * i
        elements.append(text("symbol", left - 6, y + cell // 2 + 4, ellipsize(name), "end"))
        for j, weight in enumerate(line):
            opacity, tip = max(0.04, min(1.0, weight)), escape(f"{name} - {columns[j]}: {weight:.2f}")
            rectangle = f'x="{left + cell * j}" y="{y}" width="{cell - 1}" height="{cell - 1}" rx="1.5"'
            elements.append(f'<rect class="cell" {rectangle} fill-opacity="{opacity:.3f}"><title>{tip}</title></rect>')
    return svg(width, height, elements, title, natural=True)


def _label_width(names: Sequence[str]) -> int:
    return 14 + 7 * max((len(ellipsize(name)) for name in names), default=0)


def legend(css_classes: Mapping[str, str]) -> str:
    """A legend of names and their CSS classes; empty for a single series."""
    if len(css_classes) < 2:
        return ""
    items = "".join(f'<span><i class="{classes}"></i>{escape(name)}</span>' for name, classes in css_classes.items())
    return f'<p class="legend">{items}</p>'


class Axis:
    """Maps a range of values to a range of positions, with round numbers as ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        if low == high:
            margin = low / 2 if log else (abs(low) or 1.0) / 2
            low, high = low - margin, high + margin
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def position(self, value: float) -> float:
        """The position of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round numbers inside the range."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [m * 10.0**d for d in decades for m in (1, 1.5, 2, 3, 4, 5, 7)]
            inside = [t for t in ticks if self.low <= t <= self.high]
            return inside[:: math.ceil(len(inside) / count)] if len(inside) > 1 else [self.low, self.high]
        approximate_step = (self.high - self.low) / count
        size = 10.0 ** math.floor(math.log10(approximate_step))
        step = next(size * m for m in (1, 2, 5, 10) if size * m >= approximate_step * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def frame(x_axis: Axis, y_axis: Axis, x_label: str) -> list[str]:
    """Ticks, grid lines, baseline and the x axis label."""
    baseline, elements = HEIGHT - BOTTOM, []
    for tick, name in _tick_labels(y_axis.ticks(5)):
        y = y_axis.position(tick)
        elements.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        elements.append(text("tick", LEFT - 6, y + 4, name, "end"))
    elements += [
        text("tick", x_axis.position(tick), baseline + 16, name, "middle")
        for tick, name in _tick_labels(x_axis.ticks(6))
    ]
    elements.append(f'<path class="axis" d="M{LEFT} {baseline}H{WIDTH - RIGHT}"/>')
    elements.append(text("label", WIDTH - RIGHT, HEIGHT - 6, x_label, "end"))
    return elements


def _tick_labels(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Tick labels with the fewest digits that keep them distinct."""
    digits, names = 4, [compact_number(tick) for tick in ticks]
    while len(set(names)) < len(names) and digits < _MAX_DIGITS:
        digits += 1
        names = [compact_number(tick, digits) for tick in ticks]
    return list(zip(ticks, names))


def text(kind: str, x: float, y: float, text: str, anchor: str = "start", *, rotate: bool = False) -> str:
    transform = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if rotate else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{transform}>{escape(text)}</text>'


def svg(width: float, height: float, elements: Sequence[str], title: str, *, natural: bool = False) -> str:
    style = f' style="max-width:{width}px;min-width:{_MIN_SCALE * width:.0f}px"' if natural else ""
    body = "".join(elements)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"{style}>{body}</svg>'


def thin(points: Points) -> list[tuple[float, float]]:
    """At most MAX_POINTS points; if there are more, neighbours are averaged."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def compact_number(value: float, digits: int = 4) -> str:
    """A number in few characters: 1200000 as 1.2M, 0.00025 as 2.5e-4."""
    size = abs(value)
    if size >= 1e4:
        for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= limit:
                return f"{value / limit:.{digits}g}{letter}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}"


def format_interval(low: float, high: float, share: bool = False) -> str:
    """An interval, rounded to two significant digits of its width; a `share` is shown in per cent."""
    scale, unit = (100.0, " %") if share else (1.0, "")
    width = scale * (high - low)
    if not math.isfinite(width) or width <= 0:
        return " to ".join(f"{compact_number(scale * edge)}{unit}" for edge in dict.fromkeys((low, high)))
    digits = max(0, 1 - math.floor(math.log10(width)))
    return f"{scale * low:,.{digits}f} to {scale * high:,.{digits}f}{unit}"


def ellipsize(text: str, max_length: int = 14) -> str:
    """A string with at most `max_length` characters. A longer one gets an ellipsis in the middle, because names often
    differ at the end.
    """
    if len(text) <= max_length:
        return text
    end = (max_length - 1) // 2
    return f"{text[: max_length - 1 - end]}…{text[len(text) - end :]}"


_BLUE = "#2563c9"


class Panel(NamedTuple):
    """The content of a forecast chart. `times`, numbers or dates, cover the past and the forecast."""

    title: str
    times: Shaped[np.ndarray, "C+S"]
    past: Float[np.ndarray, "C"]
    quantiles: Float[np.ndarray, "S Q"]
    actual: Float[np.ndarray, "S"] | None = None


def drawable() -> bool:
    """Whether matplotlib pictures can be drawn (the extra `report`)."""
    return find_spec("matplotlib") is not None


def forecast_figure(panels: Sequence[Panel]) -> Figure:
    """A figure of forecast panels, two per row, with one legend."""
    if not drawable():
        raise UserError("forecast charts need matplotlib; run pip install 'headway[report]' and try again")
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = Figure(figsize=(10, 2.4 * rows + 0.4), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(all_axes, panels):
        middle, last = panel.quantiles.shape[1] // 2, len(panel.past) - 1
        for edge, alpha, name in ((0, 0.2, "0.1 to 0.9"), (2, 0.35, "0.3 to 0.7")):
            low, high = panel.quantiles[:, edge], panel.quantiles[:, -1 - edge]
            ahead, name = panel.times[last + 1 :], f"quantiles {name}"
            axes.fill_between(ahead, low, high, color=_BLUE, alpha=alpha, linewidth=0, label=name)
        axes.plot(
            panel.times[last:], np.append(panel.past[-1:], panel.quantiles[:, middle]), color=_BLUE, label="median"
        )
        known = panel.past if panel.actual is None else np.append(panel.past, panel.actual)
        axes.plot(panel.times[: len(known)], known, color="black", linewidth=1, label="data")
        axes.set_title(panel.title.replace("$", r"\$"), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.times.dtype.kind == "M":
            locator = AutoDateLocator(minticks=3, maxticks=6)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
            axes.xaxis.get_offset_text().set_fontsize(8)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in all_axes[len(panels) :]:
        axes.remove()
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
