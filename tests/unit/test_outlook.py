"""How the end of a run is predicted: slopes, intervals with two sides, and domains for which nothing was fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

import headway as hw
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains import recipe_domains, scale_of
from headway.learn.plan.plans import loss_predictor
from headway.learn.plan.scale import Descent, slope_of


def test_the_slope_is_that_of_a_power_of_the_steps() -> None:
    training = [(step, 6.0 * step**-0.3) for step in range(1, 401)]
    for step in (40, 200, 400):
        assert slope_of(training, step) == pytest.approx(0.3, abs=0.01)
    assert slope_of([(step, 2.0) for step in range(1, 41)], 40) == 0.0
    assert slope_of(training[30:], 40) is None  # nothing is known of the steps from 20 to 30
    assert slope_of([], 10) is None


def test_an_interval_has_two_sides() -> None:
    descent = Descent(low=-0.5, middle=1.0, high=2.0)
    low, loss, high = descent.forecast(4.0, 0.08, 0.25)
    assert loss == pytest.approx(4.0 * 0.25**0.1)
    assert (low, high) == (pytest.approx(4.0 * 0.25**0.2), pytest.approx(4.0 * 0.25**-0.05))
    assert descent.forecast(4.0, 0.1, 1.0) == (4.0, 4.0, 4.0)
    assert descent.forecast(4.0, -0.3, 0.5) == descent.forecast(4.0, 0.0, 0.5)  # it may fall later
    for ended in (1.5, 3.9, 4.4):
        part = Descent.matching_middle(4.0, 0.08, 0.3, ended)
        assert Descent(part, part, part).forecast(4.0, 0.08, 0.3).loss == pytest.approx(ended)


@pytest.mark.parametrize("name", sorted(name for name in recipe_domains() if scale_of(name) is not None))
def test_only_what_was_fitted_predicts(name: str) -> None:
    scale = scale_of(name)
    assert scale is not None
    recipe = find_recipe(name)
    assert (loss_predictor(scale, recipe) is None) == (scale.descent is None)
    if scale.descent is not None:
        assert scale.descent.low < scale.descent.middle < scale.descent.high
        assert loss_predictor(scale, override(recipe, {"start": "runs/other"})) is None


def test_a_run_predicts_once_from_its_first_early_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    descent = Descent(0.5, 1.0, 2.0)
    monkeypatch.setattr("headway.app.api.loss_predictor", lambda scale, recipe: descent.forecast)
    monkeypatch.setattr("headway.app.api.available", lambda: False)
    text = tmp_path / "a.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log. " * 300, encoding="utf-8")
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.context": 16, "task.size": 270}
    settings |= {"train.steps": 20, "train.evaluate_every": 4, "train.batch_tokens": 64, "train.precision": "fp32"}
    run = hw.train("text", text, settings, run=tmp_path / "run", samples=0)
    training = [(line["step"], line["loss"]) for line in run.metrics if "split" not in line]
    (known,) = [line["loss"] for line in run.metrics if line.get("split") and line["step"] == 8]
    slope = slope_of(training, 8)
    assert slope is not None
    low, loss, high = descent.forecast(known, slope, 8 / 20)
    assert run.summary["forecast"] == {"step": 8, "loss": loss, "loss_interval": [low, high]}
    assert capsys.readouterr().err.count(f"predicted final validation loss: {loss:.3g} ({low:.3g} to {high:.3g})") == 1
