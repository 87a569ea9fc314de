"""The page of a run: self-contained, escaped, and readable without what is missing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from headway.errors import UserError
from headway.learn.metric_names import format_metric, is_rate
from headway.learn.report import (
    Picture,
    Sections,
    Stroke,
    Tile,
    bar_chart,
    charts,
    heatmap,
    line_chart,
    tile_grid,
    write_report,
)
from headway.learn.report.charts import WIDTH, Axis, compact_number, thin
from headway.learn.report.rendering import branches, format_setting
from headway.learn.run_report import curves, metric_families, notes

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def full() -> Sections:
    curve = line_chart({"training": [(0, 2.0), (10, 1.0)], "validation": [(10, 1.1)]}, "step", "loss")
    return Sections(
        title="a run",
        subtitle="what it is",
        headline={"loss": 1.234, "parameters": 1234},
        curves=[Picture("Loss", "by step", curve)],
        scores=[{"metric": "loss", "test": 1.1}],
        samples=[{"": "✓", "prompt": "<script>alert(1)</script>", "output": "a & b"}],
        pictures=[Picture("Attention", "of one head", heatmap([[0.2, 0.8]], ["y"], ["<a>", "b"], "attention"))],
        configuration={"model": {"kind": "transformer", "blocks": [{"heads": 2}, {"heads": 2}], "rotary": None}},
        facts={"machine": {"cores": 2}},
        command="headway train text",
    )


def test_the_page_needs_nothing_from_outside_and_escapes_what_it_shows(tmp_path: Path) -> None:
    path = write_report(tmp_path, full())
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert not re.search(r"https?://|//[a-z]|\bsrc=|\bhref=|@import|url\(|<script", text)
    assert "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    for part in (
        "Curves",
        "Scores",
        "Samples",
        "Inside the model",
        "Configuration",
        "Machine and timing",
        "0 to 1",
    ):
        assert part in text


def test_what_is_empty_is_left_out(tmp_path: Path) -> None:
    text = write_report(tmp_path, Sections(title="nothing yet")).read_text(encoding="utf-8")
    assert "<h2>" not in text


def test_a_matplotlib_figure_is_drawn_into_the_page(tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    figure.subplots().plot([1, 2, 3])
    text = write_report(tmp_path, Sections("run", pictures=[Picture("t", "c", figure)])).read_text(encoding="utf-8")
    assert '<div class="plate"><svg' in text
    assert "<metadata>" not in text
    assert "<?xml" not in text


def test_without_jinja2_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UserError, match=r"pip install 'headway\[report\]'"):
        write_report(tmp_path, full())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "drawing",
    [
        line_chart({"a": [(0, 1.0)]}, "x", "y"),
        line_chart({"a": [(0, 0.0), (1, 0.0)]}, "x", "y"),
        line_chart({"a": [(0, -1.0), (1, 5.0)], "b": [(3, 2.0)]}, "x", "y", log=True, dots=True),
        line_chart({"a": [(i, math.exp(-i)) for i in range(1000)]}, "x", "y", log=True),
        line_chart({"a": [(0, math.nan), (1, math.inf), (2, 3.0)]}, "x", "y"),
        bar_chart({"a": 0.0}, "none"),
        bar_chart({"a": -1.0, "b": 2.0}, "both sides", {"a": (-1.5, 0.5)}),
        bar_chart({"a": 1.0, "b & c": 2.0}, "two", {"a": (0.5, 1.5)}),
        heatmap([[1.0, 0.0], [0.25, 0.75]], ["a", "b"], ["long name", "d"], "x"),
    ],
)
def test_drawings_are_well_formed_and_finite(drawing: str) -> None:
    root = ET.fromstring(f"<div>{drawing}</div>")
    assert root.find("svg") is not None
    assert "nan" not in drawing
    assert "inf" not in drawing


@pytest.mark.parametrize("values", [{"a": -150.0, "b": -900.0}, {"a": -1.0, "b": 2.0}, {"a": 0.5, "b": 2.0}])
def test_bars_are_as_long_as_their_numbers(values: dict[str, float]) -> None:
    bars = ET.fromstring(f"<div>{bar_chart(values, 'returns')}</div>").findall(".//rect")
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(abs(values["b"] / values["a"]), rel=0.01)
    assert all(float(bar.attrib["x"]) + width <= WIDTH for bar, width in zip(bars, widths))


def test_a_chart_without_points_is_nothing() -> None:
    assert line_chart({"a": [], "b": [(0, math.nan)]}, "x", "y") == ""


def test_counts_are_exact_and_rates_in_per_cent() -> None:
    assert [format_metric("words", 23_394), format_metric("loss", 23_394.4), format_metric("f1", 0.4323)] == [
        "23,394",
        "23.39k",
        "43.2 %",
    ]


def test_ticks_are_round_and_inside() -> None:
    assert Axis(0, 1000, 0, 100).ticks(5) == [0, 200, 400, 600, 800, 1000]
    assert Axis(0.13, 0.47, 0, 100).ticks(4) == pytest.approx([0.2, 0.3, 0.4])
    assert Axis(1, 100, 0, 1, log=True).ticks(20) == [1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100]


def _texts(drawing: str, kind: str) -> list[str]:
    return [mark.text or "" for mark in ET.fromstring(f"<div>{drawing}</div>").iterfind(f".//text[@class='{kind}']")]


def test_no_two_ticks_have_one_label() -> None:
    ticks = _texts(line_chart({"a": [(10000.0, 0.123451), (10000.5, 0.123457)]}, "x", "y"), "tick")
    assert len(set(ticks)) == len(ticks) > 4


@pytest.mark.parametrize(("values", "ticks"), [([97.0, 98.5], ["0", "20", "100"]), ([1.0, 3.0], ["0", "1", "3"])])
def test_axes_of_shares_start_at_zero_and_end_at_the_whole(values: list[float], ticks: list[str]) -> None:
    found = _texts(line_chart({"a": list(enumerate(values))}, "x", "y", share=True), "tick")
    assert set(ticks) <= set(found)
    assert not {"120", "99"} & set(found)
    bar = ET.fromstring(f"<div>{bar_chart({'a': values[1]}, 'x', share=True)}</div>").find(".//rect")
    assert bar is not None
    assert float(bar.attrib["width"]) == pytest.approx((WIDTH - 220) * (0.985 if values[1] > 50 else 1 / 1.1), rel=0.01)


def test_a_drawing_with_small_text_is_not_shrunk_until_nothing_can_be_read() -> None:
    drawing = ET.fromstring(heatmap([[0.5] * 40] * 40, ["ab"] * 40, ["ab"] * 40, "x"))
    wide = float(drawing.attrib["viewBox"].split()[2])
    assert drawing.attrib["style"] == f"max-width:{wide:.0f}px;min-width:{0.6 * wide:.0f}px"


def test_a_pair_of_curves_has_one_colour() -> None:
    lines = {"done": [(0, 1.0), (1, 2.0)], "said": [(0, 1.5), (1, 2.5)]}
    drawing = line_chart(lines, "x", "y", strokes={"done": Stroke(2), "said": Stroke(2, dashed=True)})
    assert re.findall(r'class="curve ([^"]*)"|<i class="([^"]*)"', drawing) == [
        ("s2", ""),
        ("s2 dashed", ""),
        ("", "s2"),
        ("", "s2 dashed"),
    ]


def test_an_image_and_what_is_beside_it_are_one_tile() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    found = tile_grid([Tile(pixels, "cat", companion=pixels), Tile(pixels, "dog")])
    assert re.fullmatch(
        '<div class="tiles"><div class="pair"><img[^>]*><img[^>]*><p><span>cat</span></p></div>'
        "<div><img[^>]*><span>dog</span></div></div>",
        found,
    )


SAME = [{"output": "a b", "reference": reference} for reference in ("c", "d", "e")]


@pytest.mark.parametrize(
    ("scores", "samples", "told"),
    [
        ({"bleu": 30.0, "accuracy": 0.5, "wer": 0.4}, [], None),
        ({"accuracy": 0.3}, SAME[:2], None),
        ({"accuracy": 0.3}, SAME, "All 3 samples have the same (“a b”) output: the model cannot tell its inputs apart"),
        ({"loss": 1.0}, [{**sample, "output": ""} for sample in SAME], "All 3 samples have an empty output"),
        ({"bleu": 0.0}, [], "BLEU is 0: no translation shares a word with its reference"),
        ({"wer": 4.2}, [], "An error rate is above 100 % because the outputs are too long"),
        ({"success_rate": 0.0}, [], "The success rate is 0: no episode"),
        ({"f1": 0.0, "recall": 0.0}, [], "F1 is 0: no entity"),
    ],
)
def test_a_page_says_why_a_score_is_nothing(scores: dict, samples: list, told: str | None) -> None:
    found = notes((), {"scores": scores, "samples": samples})
    assert (found == []) if told is None else found[0].startswith(told)


def test_thinning_keeps_the_mean() -> None:
    points = thin([(i, 2.0 * i) for i in range(1200)])
    assert len(points) == 240
    assert points[0] == (2.0, 4.0)


def test_numbers_are_short() -> None:
    assert [compact_number(x) for x in (0, 0.25, 1234, 12350, 1.2e6, 3e9, 2.5e-4)] == [
        "0",
        "0.25",
        "1234",
        "12.35k",
        "1.2M",
        "3G",
        "2.5e-4",
    ]
    assert [format_setting(x) for x in (None, True, 1234, (1, 2))] == ["none", "yes", "1,234", "1, 2"]


def test_equal_neighbours_are_one_branch() -> None:
    found = branches([{"kind": "a", "x": 1}, {"kind": "a", "x": 1}, {"kind": "b"}])
    assert [(b.name, b.kind) for b in found] == [("0 to 1", "a"), ("2", "b")]


def test_parts_of_a_metric_share_its_chart_and_rates_are_in_per_cent() -> None:
    names = {"recall_at_1", "recall_at_1_de", "recall_at_5", "exact_match", "exact_match_novel", "f1"}
    assert metric_families(names) == {
        "exact_match": ["exact_match", "exact_match_novel"],
        "f1": ["f1"],
        "recall_at_1": ["recall_at_1", "recall_at_1_de"],
        "recall_at_5": ["recall_at_5"],
    }
    lines = [
        {"step": step, "split": "validation", "recall_at_1": 0.1 * step, "recall_at_1_de": 0.05} for step in (1, 2)
    ]
    found = [picture for picture in curves(lines) if picture.title.startswith("Recall")]
    assert [picture.title for picture in found] == ["Recall at 1 (%)"]
    assert "recall at 1 de" in str(found[0].figure)
    assert is_rate("neighbour_at_5")
    assert not is_rate("perplexity")


def test_long_names_are_shortened_in_the_middle() -> None:
    """Where they often agree at the start and differ at the end."""
    names = [f"balance_not_updated_after_{kind}_deposit" for kind in ("cheque", "cash")]
    assert charts.ellipsize(names[0], 22) == "balance_not…ue_deposit"
    assert [len(charts.ellipsize(name, 22)) for name in names] == [22, 22]
    assert charts.ellipsize("short", 5) == "short"
    assert [charts.ellipsize("longer", most) for most in (1, 2, 5)] == ["…", "l…", "lo…er"]


def test_intervals_have_the_digits_of_their_width() -> None:
    assert charts.format_interval(0.8650999765351874, 0.9179936473489658) == "0.865 to 0.918"
    assert charts.format_interval(0.8650999765351874, 0.9179936473489658, share=True) == "86.5 to 91.8 %"
    assert charts.format_interval(0.3, 0.72, share=True) == "30 to 72 %"
    assert charts.format_interval(1234.5, 2345.6) == "1,234 to 2,346"
    assert charts.format_interval(0.41234567, 0.41236789) == "0.412346 to 0.412368"
    assert charts.format_interval(0.5, 0.5, share=True) == "50 %"
