"""A page with all claims: one self-contained HTML file with a figure per claim."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.claims.claim import Evidence, Interval, mean
from headway.config import to_dict
from headway.errors import UserError
from headway.io.durable import write_text
from headway.learn.report.charts import compact_number
from headway.learn.report.rendering import svg_element, template_environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INSTALL_HINT = "figures need matplotlib; run pip install 'headway[report]' and try again"
_SIZE = (8.6, 3.3)  # inches
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5d6874",
    "axes.labelcolor": "#3b444d",
    "axes.grid": True,
    "grid.color": "#e2e6ea",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#5d6874",
    "ytick.color": "#5d6874",
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
}
# One colour per mixer family in all figures.
_COLOURS = {
    "elman": "#8a94a0",
    "lstm": "#d9660a",
    "gru": "#1a8a5a",
    "attention": "#2563c9",
    "linear": "#8a46c8",
    "delta": "#b5376b",
    "fast": "#0b8ea3",
}
_OTHER_COLOURS = ("#58707f", "#a3731c", "#4c5a8f", "#7b3f2a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def render_svg(evidence: Evidence) -> str:
    """A claim's figure as SVG. Raises UserError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(INSTALL_HINT) from None
    claim = evidence.claim
    with rc_context({**_STYLE, "svg.hashsalt": claim.name}):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=_SIZE, layout="constrained")
        claim.draw(figure, evidence.settings, evidence.trials)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return svg_element(buffer.getvalue())


def colour(name: str, index: int = 0) -> str:
    """A variant's colour: that of the mixer at the start of its name, or another one if there is none."""
    known = [value for family, value in _COLOURS.items() if name.startswith(family)]
    return known[0] if known else _OTHER_COLOURS[index % len(_OTHER_COLOURS)]


def plot_lines(axes: Axes, xs: Sequence[float], series: Mapping[str, Sequence[Sequence[float]]], **labels: Any) -> None:
    """Draw a curve of means for each name, with its interval as a band; `series` has a list of values per seed for each
    name.

    `labels`: title, x, y; `log` names the logarithmic axes, such as "xy"; `chance` draws a dotted line.
    """
    same: dict[str, int] = {}
    for index, (name, runs) in enumerate(series.items()):
        columns = [[v for v in column if v is not None and math.isfinite(v)] for column in zip(*runs)]
        points = [(x, mean(column)) for x, column in zip(xs, columns) if column]
        tone = colour(name, index)
        nth = same[tone] = same.get(tone, -1) + 1
        style = ("-", "--", ":", "-.")[nth % 4]
        plotted_xs = [x for x, _ in points]
        middle = [interval.value for _, interval in points]
        axes.plot(plotted_xs, middle, style, marker=_MARKERS[index % len(_MARKERS)], color=tone, label=name)
        if len(runs) > 1:
            low, high = ([getattr(interval, bound) for _, interval in points] for bound in ("low", "high"))
            floor = min(middle) / 10 if "y" in labels.get("log", "") else -math.inf
            axes.fill_between(plotted_xs, [max(v, floor) for v in low], high, color=tone, alpha=0.13, linewidth=0)
    style_axes(axes, **labels)


def plot_bars(axes: Axes, values: Mapping[str, Interval], **labels: Any) -> None:
    """Draw a horizontal bar for each name, with its interval as a whisker; the first is at the top."""
    names = list(values)
    middle = [interval.value for interval in values.values()]
    ends = ([middle - low, high - middle] for middle, low, high in values.values())
    lengths = ([max(0.0, length) if math.isfinite(length) else 0.0 for length in pair] for pair in ends)
    error_bars = list(zip(*lengths))
    tones = [colour(name, index) for index, name in enumerate(names)]
    axes.barh(range(len(names)), middle, color=tones, xerr=error_bars, height=0.62, error_kw={"capsize": 3, "lw": 1.1})
    axes.set_yticks(range(len(names)), names)
    axes.yaxis.set_inverted(True)  # inverting twice would undo it if axes share their y axis
    axes.grid(False, axis="y")
    style_axes(axes, legend=False, **labels)


def plot_intervals(
    axes: Axes, values: Mapping[str, Sequence[float]], margin: float | None = None, **labels: Any
) -> None:
    """Draw the mean of each name's values (one per seed) with its interval, and each value as a tick; the first is at
    the top.

    Values within +-`margin`, the grey area, count as zero.
    """
    for row, (name, runs) in enumerate(values.items()):
        interval, tone = mean(runs), colour(name, row)
        error_bars = [[interval.value - interval.low], [interval.high - interval.value]]
        whisker = error_bars if math.isfinite(interval.low) else None
        axes.errorbar([interval.value], [row], xerr=whisker, capsize=4, marker="o", color=tone)
        axes.plot(list(runs), [row + 0.2] * len(runs), "|", color=tone)
    if margin is not None:
        axes.axvspan(-margin, margin, color="#e2e6ea", zorder=0)
    axes.axvline(0, color="#98a4b0", linewidth=1)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.grid(False, axis="y")
    style_axes(axes, legend=False, **labels)


def style_axes(
    axes: Axes,
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    log: str = "",
    chance: float | None = None,
    ticks: Sequence[float] | None = None,
    legend: bool = True,
) -> None:
    """Set the labels, scales and legend for axes; `ticks` are on the x axis."""
    if "x" in log:
        axes.set_xscale("log", base=2)
    if "y" in log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if ticks is not None:
        axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set(title=title, xlabel=x, ylabel=y)
    if chance is not None:
        axes.axhline(chance, color="#98a4b0", linewidth=1, linestyle=":")
        coordinates = ("axes fraction", "data")
        axes.annotate("chance", (1, chance), xycoords=coordinates, ha="right", va="bottom", color="#98a4b0")
    if legend and len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)


def write_page(directory: Path, all_evidence: Sequence[Evidence], pictures: Mapping[str, str]) -> Path:
    """Write `claims.html` with all evidence and figures. Raises UserError without the extra `report`."""
    path = directory / "claims.html"
    template = template_environment(Path(__file__).parent).get_template("claims.html")
    headline = {
        "statements": len(all_evidence),
        "hold": sum(e.finding.holds for e in all_evidence),
        "do not hold here": sum(not e.finding.holds for e in all_evidence),
        "controls that fail, as they must": f"{sum(e.finding.control for e in all_evidence)} of {len(all_evidence)}",
        "minutes": f"{sum(e.seconds for e in all_evidence) / 60:.1f}",
    }
    write_text(path, template.render(headline=headline, claims=[_section(e, pictures) for e in all_evidence]))
    return path


def _section(evidence: Evidence, pictures: Mapping[str, str]) -> dict[str, Any]:
    claim, finding, facts = evidence.claim, evidence.finding, evidence.environment
    threads = f"{facts.get('threads')} {'thread' if facts.get('threads') == 1 else 'threads'}"
    numbers = []
    for number in finding.numbers:
        value, low, high = number.interval
        known = math.isfinite(low) and math.isfinite(high)
        interval = f"{format_number(low)} to {format_number(high)}" if known else ""
        numbers.append(
            {"number": number.name, "value": format_number(value), "95 % interval": interval, "over": number.of}
        )
    circumstances = [
        f"{evidence.trials.seeds} seeds from {evidence.seed}",
        f"{evidence.seconds:.0f} s",
        f"{threads} of {facts.get('machine', {}).get('processor')}",
        f"torch {facts.get('packages', {}).get('torch')}",
    ]
    return {
        "number": claim.number,
        "name": claim.name,
        "title": claim.title,
        "statement": claim.statement,
        "source": claim.source,
        "verdict": finding.verdict,
        "holds": finding.holds,
        "control_verdict": finding.control_verdict,
        "control_failed": finding.control,
        "words": {"Measured": claim.measured, "Rule, fixed beforehand": claim.rule, "Control": claim.control},
        "numbers": numbers,
        "remarks": finding.remarks,
        "picture": pictures.get(claim.name),
        "settings": to_dict(evidence.settings),
        "facts": ", ".join(circumstances),
        "command": f"headway claims {claim.name}{' --full' if evidence.full else ''} --seed {evidence.seed}",
    }


def format_number(value: float) -> str:
    """A number with at most three significant digits."""
    if not math.isfinite(value):
        return "none"
    return compact_number(float(f"{value:.3g}"))
