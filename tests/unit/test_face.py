"""What `import headway` gives: names that are loaded when they are used, and how results show themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headway as hw
from headway.app.compare import ComparedRun, VariantResult
from headway.app.variants import Variant
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains import recipes
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.nn.models import build
from headway.nn.models.presets import preset
from headway.predict.logit_lens import LensLayer, LensToken, NextLogits, ScoredToken


def test_every_name_is_there_and_importing_is_light() -> None:
    for name in hw.__all__:
        assert getattr(hw, name) is not None
    code = "import headway, sys; assert 'torch' not in sys.modules; headway.Sampling(0.5, top_k=3)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_and_presets_are_tables() -> None:
    found = hw.recipes()
    assert [row["name"] for row in found] == list(recipes())
    assert all(row["parameters"] > 0 and row["description"] for row in found)
    assert {"name": "gpt2", "parameters": 124_439_808} in hw.presets()


def test_a_start_has_one_name() -> None:
    with pytest.raises(hw.UserError, match="both name the same argument; remove one"):
        hw.train("text", "a.txt", start="runs/a", from_="runs/b", progress=False)
    with pytest.raises(hw.UserError, match="nowhere does not exist"):
        hw.train("text", "a.txt", from_="nowhere", progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": {"model.mixer": "lstm"}}, "model.mixer is 'lstm'; pass a list of values to compare"),
        ({"grid": ["lstm"]}, "grid is a list; pass a mapping"),
        ({"grid": {"model.depth": [1, 2]}, "seeds": 0}, "seeds=0, but it must be at least 1"),
        ({"grid": {"model.depth": [1, 2]}, "resume": True}, "--resume without --run would use a new directory"),
        ({"grid": {"model.depth": [1, 2]}, "minutes": "3"}, "minutes is '3'; pass a number or None"),
    ],
)
def test_what_cannot_be_compared_is_one_line(given: dict, message: str) -> None:
    with pytest.raises(hw.UserError, match=message):
        hw.compare("text", data="a.txt", **given)


# What shows itself


def comparison() -> hw.Comparison:
    """Two variants, as they are after training."""
    recipe, results = find_recipe("text"), []
    for name, loss in (("<lstm>", 2.0), ("attention", 1.5)):
        scores = {"split": "test", "loss": loss}
        summary = {"best": {"loss": loss}, "scores": scores, "step": 9, "tokens": 90, "seconds": 3.0}
        results.append(
            VariantResult(Variant(name, recipe, recipe.model, 1000), [ComparedRun(Path("c") / name, summary, [])])
        )
    return hw.Comparison(
        Path("c"), recipe, ["model.mixer"], "loss", "min", "token", "nats per token", results, [], Path("c/report.html")
    )


def shown() -> dict[str, tuple[Any, str, str]]:
    """Each kind of result, its line, and something that its table has."""
    module = build(override(preset("gpt2"), {"width": 16, "depth": 1, "heads": 2, "context": 8, "symbols": 9}))
    summary = {"parameters": 1234567, "step": 1000, "seconds": 61.5, "report": "a b/report.html"}
    summary["scores"] = {"split": "test", "loss": 1.5, "loss_interval": [1.4, 1.6], "samples": 9}
    run = hw.Run(Path("runs/<i>"), find_recipe("text"), module, None, [], summary)
    said = [hw.Segment(0.0, 1.5, " a & b", [1], -0.1, 1.0, 0.0, 0.0)]
    pair = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    size = sum(parameter.numel() for parameter in module.parameters())
    return {
        "model": (
            hw.Model(OpenedModel(module, Usage(), None), Path("m")),
            f"Model m: kind Transformer, parameters {size:,}, context 8, on cpu, can generate, embed, "
            "score, attention, lens, logits, evaluate",
            ">Transformer</td>",
        ),
        "run": (
            run,
            "Run runs/<i>: recipe text, parameters 1,234,567, steps 1,000, seconds 61.5, evaluated on test, loss 1.5, "
            "report a b/report.html",
            "<strong>Run runs/&lt;i&gt;</strong>",
        ),
        "comparison": (
            comparison(),
            "Comparison c: of model.mixer, variants 2, best attention, loss 1.5, report c/report.html",
            "&lt;lstm&gt;",
        ),
        "completion": (
            hw.Completion([1, 2], "<b>\nx", [-0.1, -0.2], "stop", 12.345),
            "Completion: text '<b>\\nx', tokens 2, ended by stop, tokens per second 12.35",
            "&lt;b&gt;",
        ),
        "transcription": (
            hw.Transcription("a & b", "en", 1.5, said),
            "Transcription: text 'a & b', language en, seconds 1.5, segments 1",
            "a &amp; b</td>",
        ),
        "matches": (hw.Matches(pair, pair), "Matches: of 2 x 2, best text of each image [2, 1]", "0.75</td>"),
        "plan": (
            hw.Plan(5.0, ("a <reason>",), 1000, 64, 2, 512, 900, None, 2**21),
            "Plan of 5 minutes: parameters 1,000, width 64, layers 2, batch 512, steps 900, memory 2 MiB",
            "a &lt;reason&gt;",
        ),
        "attention": (
            hw.Attention({"<self>": torch.zeros(2, 3, 3)}, ["a", "b", "c"], []),
            "Attention: maps 1, tokens 3",
            "&lt;self&gt;",
        ),
        "lens": (
            hw.Lens(
                [LensToken("<a>", 1)],
                [LensLayer([[ScoredToken(" b", 2, 0.5)]], [])],
                NextLogits(0, [], [], [], 0.0),
                [],
                [],
                0.0,
                False,
            ),
            "Lens: tokens 1, layers 1",
            "b 50%",
        ),
        "look": (
            hw.ImageAttention(np.zeros((8, 9, 3), np.uint8), np.zeros((2, 3))),
            "ImageAttention: pixels 8 x 9, patches 2 x 3, shown by picture()",
            "picture()",
        ),
    }


def test_results_show_themselves_in_a_line_and_a_table() -> None:
    for name, (value, line, part) in shown().items():
        assert repr(value) == line, name
        page = value._repr_html_()
        assert part in page, name
        assert "<i>" not in page


def test_one_match_and_a_refused_plan_show_themselves() -> None:
    one = torch.tensor(0.5)
    assert repr(hw.Matches(one, one)) == "Matches: of one image and one text, best text of each image [1]"
    assert repr(hw.Plan(1.0, ("too few",))) == "Plan of 1 minutes: refused because too few"
    assert '<a href="a%20b/report.html">report</a>' in shown()["run"][0]._repr_html_()
    many = hw.Transcription("a", None, 1.0, [hw.Segment(0.0, 1.0, "a", [], 0.0, 0.0, 0.0, 0.0)] * 51)
    assert "and 1 more" in many._repr_html_()
    assert len(repr(hw.Completion([], "long " * 100, [], "length", 1.0))) < 160
