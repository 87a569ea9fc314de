"""How agents, policies and chess players are fitted to data and minutes; and `headway plan`, which tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trajectory_data
from chess_data import games_file

import headway as hw
from headway.app.cli import main as cli
from headway.config import override
from headway.data.episode_files import episode_lengths, summarize_demonstrations
from headway.data.input_files import File
from headway.domains import recipe as find_recipe
from headway.domains import scale_of
from headway.domains.chess import recipes as chess_recipes
from headway.domains.robotics.recipes import resized_size
from headway.errors import UserError
from headway.learn.optim import is_matrix
from headway.learn.plan import choose
from headway.learn.plan.choose import ladder
from headway.learn.plan.scale import Scale, shape_of
from headway.nn.models import build, describe

TINY = {
    "model.width": 16, "model.depth": 1, "model.heads": 2, "task.env": "", "task.episodes": 0,
    "task.split.validation": 0.3, "task.split.test": 0.0,
}  # fmt: skip


def scale(name: str) -> Scale:
    found = scale_of(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["trajectories", "robotics", "chess"])
def test_ladders_rise_by_small_steps_and_muon_takes_what_lies_in_stacks(name: str) -> None:
    recipe = find_recipe(name)
    sizes = [rung.recipe.model for rung in ladder(recipe, scale(name), {})]
    widths = [shape_of(model)[0] for model in sizes]
    counts = [describe(model)["parameters"] for model in sizes]
    assert widths == sorted(widths)
    assert all(1.1 < after / before < 2.6 for before, after in pairwise(counts))
    assert any(is_matrix(key, p) for key, p in build(sizes[0], None).named_parameters())
    assert recipe.optim.kind == "muon"  # type: ignore[attr-defined]
    assert recipe.schedule.factor(9999, 10_000) < 1e-3


def test_rates_follow_the_width_and_depth_of_what_a_robot_sees() -> None:
    recipe = find_recipe("robotics")
    model = override(recipe.model, {"width": 64, "depth": [5, 1, 1], "heads": 2})
    assert shape_of(model) == (64, 5)


@pytest.mark.parametrize("kind", ["flat", "numbered", "flags"])
def test_lengths_are_told_without_states(tmp_path: Path, kind: str) -> None:
    lengths = [3, 5, 2]
    ends = np.cumsum(lengths)
    steps = int(ends[-1])
    arrays: dict[str, Any] = {"actions": np.zeros(steps), "rewards": np.zeros(steps), "states": np.zeros((steps, 2))}
    if kind == "flat":
        arrays["ends"] = ends
    elif kind == "flags":
        arrays["terminals"] = np.isin(np.arange(steps) + 1, ends)
    else:
        parts = {name: np.split(array, ends[:-1]) for name, array in arrays.items()}
        names = {"states": "obs", "actions": "actions", "rewards": "rewards"}
        arrays = {f"{names[key]}_{i}": part for key, each in parts.items() for i, part in enumerate(each)}
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert episode_lengths(File(path)) == lengths
    assert summarize_demonstrations([path]).lengths.tolist() == lengths


def test_windows_are_no_longer_than_episodes_and_more_minutes_play_more(tmp_path: Path) -> None:
    path = trajectory_data.saved(tmp_path)
    settle = scale("trajectories").data_settings
    short = settle(find_recipe("trajectories"), [path], 1).settings
    long = settle(find_recipe("trajectories"), [path], 60).settings
    assert short["task.context"] == max(trajectory_data.made().lengths)
    assert short["task.episodes"] < long["task.episodes"] <= 32
    assert short["task.split.validation"] == 0.1


@pytest.mark.parametrize(
    ("cameras", "minutes", "wanted"),
    [
        ({}, 5, None),
        ({"top": (64, 64)}, 2, None),
        ({"top": (480, 640)}, 2, [64, 80]),
        ({"top": (480, 640)}, 60, [96, 128]),
        ({"top": (480, 640), "hand": (480, 640)}, 600, [128, 176]),
        ({"top": (50, 50)}, 60, [48, 48]),
        ({"top": (9, 9)}, 60, [16, 16]),
    ],
)
def test_pictures_are_made_small_enough_for_the_minutes(cameras: Any, minutes: float, wanted: Any) -> None:
    assert resized_size(cameras, minutes) == wanted


def test_an_evaluation_is_expected_to_last_as_long_as_the_best_episode(tmp_path: Path) -> None:
    task = trajectory_data.opened(trajectory_data.saved(tmp_path, discrete=False), tmp_path, **{"task.episodes": 0})
    training = task.examples.splits.indices["train"]
    best = training[np.argmax(task.examples.episodes.returns[training])]
    assert task.objective.evaluation_growth({"length_mean": 0.5}) == 2 * task.examples.episodes.lengths[best]
    assert task.objective.evaluation_growth({"length_mean": 1000.0}) == 1
    assert task.objective.evaluation_growth({"loss": 1.0}) == 1
    assert task.objective.report_cost() == 0


def test_what_takes_too_long_to_read_is_said_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("chess")
    path = games_file(tmp_path, 20)
    with pytest.raises(UserError, match=r"reading about 1,200 positions .* --minutes to .* or more, or use fewer"):
        scale("chess").data_settings(find_recipe("chess"), [path], 1e-6)
    monkeypatch.setattr(chess_recipes, "_MAX_READING_SHARE", 1e9)
    settings = scale("chess").data_settings(find_recipe("chess"), [path], 1).settings
    assert settings["train.evaluate_limit"] == 256
    assert settings["task.split.test"] == pytest.approx(100 / 1200, abs=1e-5)


def test_a_plan_of_each_number_of_minutes(tmp_path: Path) -> None:
    path = trajectory_data.saved(tmp_path, discrete=False)
    few, some = hw.plan("trajectories", path, [1e-5, 0.5], TINY, device="cpu")
    assert few.steps is None
    assert "s are left for training" in few.reasons[0]
    assert (some.width, some.layers) == (16, 1)
    assert min(some.steps or 0, some.batch or 0, some.parameters or 0, some.memory or 0, some.epochs or 0) > 0


def test_losses_are_reasons_only_where_their_law_was_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = trajectory_data.saved(tmp_path), {"task.env": "", "task.episodes": 0}
    own = scale("trajectories")
    small = replace(own, shapes=((16, 1, 1), (24, 1, 1)))
    assert not own.calibrated
    for fitted in (False, True):
        monkeypatch.setattr("headway.app.api.scale_of", lambda name, fitted=fitted: replace(small, calibrated=fitted))
        (plan,) = hw.plan("trajectories", path, 0.3, sizes, device="cpu")
        assert any("parameters (width" in reason for reason in plan.reasons)
        assert any("lowest predicted loss" in reason for reason in plan.reasons) is fitted


def test_plans_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_MAX_REPEATS", 1e9)  # else a few episodes are enough for all minutes
    path = trajectory_data.saved(tmp_path, discrete=False)
    words = ["plan", "trajectories", "--data", str(path), "--device", "cpu", "--json", "--set"]
    settings = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    assert cli.main([*words, *settings, "--minutes", "5,10"]) == cli.DONE
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [plan["minutes"] for plan in plans] == [5, 10]
    assert plans[0]["steps"] < plans[1]["steps"]
    assert cli.main([*words, *settings, "--minutes", "0.00001"]) == cli.USER_ERROR
    assert cli.main([*words, *settings, "--minutes", "1,x"]) == cli.USER_ERROR
    assert cli.main(["plan", "trajectories", "--data", str(tmp_path / "none.npz")]) == cli.USER_ERROR
    assert all(line.startswith("headway: ") for line in capsys.readouterr().err.splitlines())


def test_a_recipe_with_a_size_of_its_own_is_planned_in_steps(tmp_path: Path) -> None:
    path = trajectory_data.saved(tmp_path, discrete=False)
    settings = {**TINY, "task.random": 0, "model.embed.states": {"kind": "numbers", "size": 4}, "train.batch_size": 4}
    (plan,) = hw.plan("pendulum", path, [0.3], settings, device="cpu")
    assert plan.epochs is None
    assert (plan.steps or 0) > 0
    assert "the model size is fixed by the recipe" in plan.reasons[0]
