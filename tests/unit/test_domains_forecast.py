"""Forecasts: splits by time, windows, scores, runs, and what they are used for."""

from __future__ import annotations

import csv
import json
import math
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import weights

import headway as hw
from headway.app.cli import main as cli
from headway.app.recipes import configure_recipe
from headway.data.series import plot_axis
from headway.domains import recipe as find_recipe
from headway.domains import scale_of
from headway.domains.forecast.task import LEVELS, WindowCodec
from headway.errors import UserError
from headway.learn import Recipe
from headway.learn.objectives.quantiles import Quantiles
from headway.learn.plan.budget import Throughput
from headway.learn.plan.choose import active_parameters, choose_size
from headway.learn.recipe import open_task
from headway.learn.report.charts import Panel, forecast_figure
from headway.learn.report.rendering import explain_low_scores
from headway.metrics.forecasts import forecast_scores, seasonal_error, simple_forecasts

TINY = {"train.steps": 30, "train.batch_size": 16, "model.dropout": 0.0}


def sales(n: int) -> float:
    return 10 + 0.05 * n + 3 * math.sin(2 * math.pi * n / 7) + (n * 37 % 11) / 11


def table(path: Path, days: int = 200, **series: Any) -> Path:
    """Daily values with a week's season that grows, or those of functions."""
    series = series or {"sales": sales}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", *series])
        writer.writerows([date(2023, 1, 1) + timedelta(n), *(f(n) for f in series.values())] for n in range(days))
    return path


def windows(path: Path, **settings: Any) -> Any:
    return open_task(configure_recipe("forecast", path, {**TINY, **settings}, None), path.parent / "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("series") / "daily.csv")


@pytest.fixture(scope="module")
def run(data: Path) -> Any:
    return hw.train("forecast", data, TINY, run=data.parent / "run", progress=False, samples=2)


def test_what_is_judged_lies_after_what_is_trained_on(data: Path) -> None:
    task = windows(data)
    found, codec = task.examples, task.examples.codec
    assert (codec.season, codec.horizon, codec.context, codec.patch) == (7, 14, 56, 2)
    reach = {
        side: (found.windows.steps[rows].min(), found.windows.steps[rows].max() + 14)
        for side, rows in found.splits.indices.items()
    }
    assert reach == {"train": (56, 140), "validation": (140, 170), "test": (170, 200)}
    for split in ("train", "validation", "test"):
        batch = found.of(split).take(np.arange(3))
        assert batch.inputs[0].shape == (3, 28, 6)
        assert batch.targets[0].shape == (3, 14, 9)


def test_batches_are_a_function_of_their_number(data: Path) -> None:
    stream = windows(data).batches("train")
    third = [next(stream) for _ in range(4)][3]
    alone = next(windows(data).batches("train", start=3))
    assert torch.equal(*(each.inputs[0] for each in (third, alone)))
    assert torch.equal(*(each.targets[0] for each in (third, alone)))


def test_a_window_knows_nothing_of_what_follows(data: Path, tmp_path: Path) -> None:
    """Later values change neither inputs nor scales of training."""
    other = table(tmp_path / "other.csv", sales=lambda n: sales(n) if n < 140 else 1000.0 + n)
    one, two = (windows(path).examples for path in (data, other))
    assert one.codec == two.codec
    for part in ("inputs", "targets"):
        first, second = (getattr(each.of("train").take(np.arange(71)), part)[0] for each in (one, two))
        assert torch.equal(first, second)


def test_an_untrained_model_says_the_simple_forecast_with_the_errors_it_had(data: Path) -> None:
    task = windows(data)
    model = task.adapt(configure_recipe("forecast", data, TINY, None).model).build(0)
    codec, rows = task.examples.codec, task.examples.splits.rows("train")
    said = task.objective.predict_quantiles(model, task.examples.of("train"))[0]
    line = simple_forecasts(task.examples.forecast_window(rows).before, 14, 7)[codec.line]
    near = np.abs(said[..., 4] - line).mean()
    assert codec.line == "season and drift"
    assert near < np.abs(task.examples.forecast_window(rows).after - line).mean()
    inside = (said[..., 0] <= task.examples.forecast_window(rows).after) & (
        task.examples.forecast_window(rows).after <= said[..., -1]
    )
    assert inside.mean() == pytest.approx(0.8, abs=0.1)


def test_lines() -> None:
    found = simple_forecasts(np.array([[1.0, 2.0, 4.0, 3.0, 6.0, 8.0]]), 4, 3)
    assert {name: line[0].tolist() for name, line in found.items()} == {
        "last": [8, 8, 8, 8],
        "mean": [4, 4, 4, 4],
        "drift": pytest.approx([9.4, 10.8, 12.2, 13.6]),
        "season": [3, 6, 8, 3],
        "season and drift": pytest.approx([19 / 3, 28 / 3, 34 / 3, 29 / 3]),
    }


def test_scores_by_hand() -> None:
    assert seasonal_error(np.array([1.0, 5.0, 2.0, 7.0]), 2) == 1.5
    assert math.isnan(seasonal_error(np.ones(9), 2))
    said = np.array([[[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]]])
    came, there = np.array([[3.0, 9.0]]), np.array([[True, False]])
    found = forecast_scores(said, came, there, np.array([2.0]), (0.1, 0.5, 0.9))
    assert found == {
        "mase": 0.5,
        "weighted_quantile_loss": pytest.approx(2 * (0.3 + 0.5 + 0.1) / 3 / 3),
        "coverage": 1.0,
    }


def test_the_pinball_loss_is_least_at_the_quantiles() -> None:
    draws = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0))
    objective, levels = Quantiles(LEVELS), torch.tensor(LEVELS)
    right = torch.quantile(draws.flatten(), levels)
    losses = [
        float(objective.pinball((right + shift).expand(4000, 1, 9), draws.expand(-1, -1, 9), torch.ones(4000, 1) > 0))
        for shift in (-0.2, 0.0, 0.2)
    ]
    assert losses[1] == min(losses)


def test_it_overfits_one_batch(data: Path) -> None:
    task = windows(data)
    batch = next(task.batches("train"))
    model = task.adapt(
        configure_recipe("forecast", data, {**TINY, "model.width": 64, "model.heads": 4}, None).model
    ).build(0)
    optim = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = task.loss(model, batch)["loss"]
        (loss.total / loss.count).backward()
        optim.step()
        optim.zero_grad()
        losses.append(float((loss.total / loss.count).detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_run_forecasts_and_is_judged(run: Any, data: Path) -> None:
    scores = run.summary["scores"]
    assert scores["split"] == "test"
    assert scores["mase"] < scores["mase_naive"]
    assert scores["weighted_quantile_loss"] < scores["weighted_quantile_loss_naive"]
    assert "Forecasts" in (run.directory / "report.html").read_text(encoding="utf-8")
    (found,) = hw.load(run.directory).forecast()
    assert found.series == "sales"
    assert found.times[0] == "2023-07-20"
    assert list(found.quantiles) == [f"q{level}" for level in LEVELS]
    assert len(found.times) == len(found.quantiles["q0.5"]) == 14
    table = np.array([*found.quantiles.values()])
    assert (np.diff(table, axis=0) >= 0).all()
    assert hw.load(run.directory).evaluate(data)["samples"] == 131


def test_forecasts_are_mixed_with_simple_ones(run: Any, data: Path) -> None:
    """The forecasts of a network that has learned for 30 steps are no worse than exponential smoothing."""
    scores, saved = run.summary["scores"], json.loads((run.directory / "forecast.json").read_text())["mixture"]
    assert scores["mase"] <= 1.1 * min(scores["mase_naive"], scores["mase_smoothing"])
    assert saved["errors"][0] > 1.1 * saved["errors"][1]  # the network alone would be worse
    again = hw.load(run.directory).evaluate(split="test")
    assert again["mase"] == pytest.approx(scores["mase"])
    page = (run.directory / "report.html").read_text(encoding="utf-8")
    assert f"{100 * saved['shares'][1]:.0f} % exponential smoothing" in page
    alone = json.loads((run.directory / "forecast.json").read_text()) | {"mixture": None}
    mixed = hw.load(run.directory).forecast(steps=20)[0]
    (run.directory / "forecast.json").rename(run.directory / "kept.json")
    (run.directory / "forecast.json").write_text(json.dumps(alone))
    network = hw.load(run.directory).forecast(steps=20)[0]
    (run.directory / "kept.json").replace(run.directory / "forecast.json")
    expected = [0.05 * n + 3 * math.sin(2 * math.pi * n / 7) for n in range(200, 220)]
    errors = [np.abs(np.diff(one.quantiles["q0.5"]) - np.diff(expected)).mean() for one in (mixed, network)]
    assert errors[0] < errors[1]


def test_more_steps_than_the_horizon_go_on_from_the_medians(run: Any) -> None:
    model = hw.load(run.directory)
    long, short = model.forecast(steps=40)[0], model.forecast()[0]
    assert len(long.times) == 40
    assert long.quantiles["q0.9"][:14] == short.quantiles["q0.9"]
    assert 18 < np.mean(long.quantiles["q0.5"]) < 24  # it goes on growing, by 0.05 a day from 20


def test_series_are_forecast_each_by_itself(run: Any, tmp_path: Path) -> None:
    model = hw.load(run.directory)
    both = model.forecast(table(tmp_path / "two.csv", 80, a=lambda n: float(n % 7), b=lambda n: 5.0))
    alone = model.forecast(table(tmp_path / "one.csv", 80, b=lambda n: 5.0))[0]
    assert both[1].quantiles["q0.5"] == pytest.approx(alone.quantiles["q0.5"])
    assert alone.quantiles["q0.5"] == pytest.approx([5.0] * 14, abs=2.0)  # constant


def test_data_from_memory(run: Any) -> None:
    rows = [{"date": date(2024, 1, 1) + timedelta(n), "x": float(n % 7)} for n in range(70)]
    assert hw.load(run.directory).forecast(rows, steps=2)[0].times == ["2024-03-11", "2024-03-12"]


def test_the_command_writes_a_table_and_a_picture(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out.csv", tmp_path / "out.svg"
    wanted = ["forecast", str(run.directory), "--steps", "3", "--out", str(out), "--picture", str(picture), "--json"]
    assert cli.main(wanted) == cli.DONE
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["forecasts"][0]
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["series", "time", *said["quantiles"]]
    assert [float(row["q0.1"]) for row in rows] == said["quantiles"]["q0.1"]
    assert "<svg" in picture.read_text(encoding="utf-8")
    assert cli.main(["forecast", str(run.directory)]) == cli.DONE
    assert "2023-07-20" in capsys.readouterr().out


def test_a_report_names_the_better_simple_forecast() -> None:
    scores = {"mase": 1.2, "mase_naive": 1.0, "mase_smoothing": 1.3}
    (line,) = explain_low_scores(scores, ())
    assert line == (
        "The seasonal naive forecast is better on this split: its mean absolute scaled error is 1, "
        "compared with 1.2 for the model."
    )


def test_pictures_have_dates_a_legend_and_no_empty_panel() -> None:
    pytest.importorskip("matplotlib")
    days = [f"{day:02}.01.2024" for day in range(1, 11)]
    panels = [Panel(name, plot_axis(days), np.arange(8.0), np.zeros((2, 9)), np.ones(2)) for name in "abc"]
    figure = forecast_figure(panels)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c"]
    assert type(figure.axes[0].xaxis.get_major_formatter()).__name__ == "ConciseDateFormatter"
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["quantiles 0.1 to 0.9", "quantiles 0.3 to 0.7", "median", "data"]


def test_each_series_has_a_panel(tmp_path: Path) -> None:
    several = windows(table(tmp_path / "x.csv", 120, x=lambda n: float(n), y=lambda n: n % 7 + 1.0)).examples
    rows = several.latest_rows(6)
    assert [several.series[n].name for n in several.windows.series[rows]] == ["x", "y"]
    assert (several.windows.steps[rows] == 106).all()
    times = several.times(int(rows[0])).astype("datetime64[D]").astype(str)
    assert (times[several.codec.context], times[-1]) == ("2023-04-17", "2023-04-30")
    alone = windows(table(tmp_path / "y.csv", 400, x=lambda n: float(n))).examples
    assert np.diff(alone.windows.steps[alone.latest_rows(6)]).tolist() == [14] * 3


def test_what_cannot_be_forecast(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = table(tmp_path / "short.csv", 20)
    monthly = tmp_path / "monthly.csv"
    monthly.write_text("month,v\n" + "".join(f"{2000 + n // 12}-{n % 12 + 1:02},{n}\n" for n in range(99)))
    for arguments, part in (
        (["--data", str(short)], "has 20 values, but the model needs 56"),
        (["--data", str(monthly)], "the data have one value per month, but the model was trained on one per day"),
        (["--picture", "x.bmp"], "is not a supported image file"),
        (["--out", str(tmp_path / "no" / "x.csv")], "not a folder"),
        (["--steps", "0"], "is not an integer of at least 1"),
    ):
        assert cli.main(["forecast", str(run.directory), *arguments]) == cli.USER_ERROR
        told = capsys.readouterr().err.strip()
        assert part in told
        assert "\n" not in told


@pytest.mark.parametrize(
    ("days", "settings", "part"),
    [
        (10, {}, "'sales' has 10 values, of which 6 are for training: too few"),
        (60, {"task.season": 52}, "a season of 52"),
        (90, {"task.context": 80}, "too few"),
        (99, {"task.horizon": 0}, "task.horizon is 0"),
        (99, {"task.test": 1.0}, "choose shares"),
        (99, {"model": "gpt-10m"}, "does not take time series"),
    ],
)
def test_too_little_to_train_on(tmp_path: Path, days: int, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        windows(table(tmp_path / "x.csv", days), **settings)


def test_constant_series_and_the_last_season(tmp_path: Path) -> None:
    found = windows(table(tmp_path / "x.csv", 99, x=lambda n: 3.0, y=lambda n: float(n % 7)))
    model = found.adapt(configure_recipe("forecast", tmp_path / "x.csv", TINY, None).model).build(0)
    scores = found.evaluate(model, "test")
    assert math.isfinite(scores["loss"])
    assert "mase" not in scores  # neither has an error of the seasonal naive forecast


@pytest.mark.parametrize("mixer", ["lstm", "gru", "linear_attention", "mlstm"])
def test_any_mixer(data: Path, mixer: str) -> None:
    settings = {**TINY, "model.mixer": mixer}
    task = windows(data)
    model = task.adapt(configure_recipe("forecast", data, settings, None).model).build(0)
    loss = task.loss(model, next(task.batches("train")))["loss"]
    loss.total.backward()
    assert torch.isfinite(loss.total)


def test_the_same_bits_twice_and_a_start_from_a_run(run: Any, data: Path, tmp_path: Path) -> None:
    again = hw.train("forecast", data, TINY, run=tmp_path / "again", progress=False, samples=0)
    one, two = weights(run.directory), weights(again.directory)
    assert all(torch.equal(one[name], two[name]) for name in one)
    few = {"train.steps": 2, "train.batch_size": 16}
    more = hw.train("forecast", data, few, run=tmp_path / "more", from_=run.directory, progress=False, samples=0)
    saved = [json.loads((place / "forecast.json").read_text()) for place in (run.directory, more.directory)]
    mixtures = [each.pop("mixture") for each in saved]
    assert saved[0] == saved[1]
    assert mixtures[0]["errors"][1:] == mixtures[1]["errors"][1:]


def test_a_codec_is_what_it_was() -> None:
    codec = WindowCodec(8, 2, 1, 2, "number", 1, errors=((0.0,) * 9,) * 2)
    read = codec.encode(np.arange(8.0)[None], np.array([8]), np.array([0.1]))
    assert read.inputs.shape == (1, 4, 2)
    assert float(read.inputs.mean()) == pytest.approx(0, abs=1e-6)
    assert read.unscale(np.zeros((1, 2, 9))).tolist() == [[[7.0] * 9] * 2]


def test_more_data_and_time_make_a_larger_model() -> None:
    recipe, scale = find_recipe("forecast"), scale_of("forecast")
    assert scale is not None

    def pace(sized: Recipe) -> Throughput:
        return Throughput(3e8 / active_parameters(sized.model), 0.002)

    found = [
        choose_size(recipe, scale, {}, unique, seconds, pace)[0].parameters
        for unique, seconds in ((400, 50.0), (100_000, 600.0), (5_000_000, 7200.0))
    ]
    assert found == sorted(set(found))
    assert scale.learning_rates(recipe, 64, 4) == {"optim.lr": 0.01}
