"""Runs of robots from end to end: train, resume, evaluate, roll out, film, by the command line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import cut_back, weights

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

from robot_data import LEFT, REACH, given, made, tiny  # noqa: E402

import headway as hw  # noqa: E402
from headway.app.cli import main as cli  # noqa: E402
from headway.errors import ConfigError, UserError  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, judged in their environments, with its report."""
    place = tmp_path_factory.mktemp("runs") / "robot"
    with pytest.MonkeyPatch.context() as patch:
        given(patch, made(("reach", "left")))
        found = hw.train(tiny(), data="any.npz", run=place, progress=False, samples=1)
    assert found.summary["goal"] == "score"
    return place


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_says_how_often_it_succeeds(run: Path) -> None:
    scores = json.loads((run / "run.json").read_text(encoding="utf-8"))["scores"]
    low, high = scores["success_rate_interval"]
    assert low <= scores["success_rate"] <= high
    assert (scores["split"], scores["samples"]) == ("test", 8)
    rates = [scores[f"success_rate_{name}"] for name in ("reach", "left")]
    assert scores["success_rate"] == pytest.approx(sum(rates) / 2)
    low, high = scores["success_rate_left_interval"]
    assert low <= scores["success_rate_left"] <= high
    assert scores["success_rate"] <= scores["score"] < scores["success_rate"] + 1 / 8


def test_the_report_shows_success_film_and_chunks(run: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'headway[report]'")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "4 episodes per task" in page
    assert page.count("data:image/png;base64,") >= 2
    assert "An episode: left" in page
    assert "0 demonstrated" in page
    assert re.search(r'<polyline class="curve s0".*<polyline class="curve s0 dashed"', page)
    assert re.search(r"<dt>success rate, \w+</dt><dd>\d+(\.\d)? %</dd>", page)
    assert "success and speed, " not in page.split("</header>")[0]
    assert page.count('<rect class="border"') >= 2


def test_a_run_goes_on_bit_for_bit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(("reach", "left")))
    before = cut_back(run, tmp_path / "again", step=3)
    hw.train(tiny(), data="any.npz", run=before, resume=True, progress=False, samples=1)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(before)[name]), name
    lines = [(each / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for each in (run, before)]
    losses = [[json.loads(line).get("score", json.loads(line).get("loss")) for line in each] for each in lines]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("head", ["regression", "diffusion"])
def test_a_run_repeats_bit_for_bit(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    recipe = tiny(**{"model.head.kind": head, "task.episodes": 0, "task.split.validation": 0.3})
    found = [hw.train(recipe, "any.npz", run=tmp_path / name, progress=False, samples=0) for name in "ab"]
    first, second = (weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert found[0].summary["scores"]["loss"] == found[1].summary["scores"]["loss"]


def test_rollout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rollout", str(run), "--episodes", "3", "--seed", "7"]
    assert cli.main([*command, "--json"]) == cli.DONE
    found = said(capsys)
    assert found["samples"] == 6
    assert [(each["task"], each["environment"]) for each in found["results"]] == [("reach", REACH), ("left", LEFT)]
    assert all(len(each["success_steps"]) == 3 for each in found["results"])
    low, high = found["success_rate_interval"]
    assert low <= found["success_rate"] <= high
    assert hw.load(run).rollout(episodes=3, seed=7)["results"] == found["results"]
    assert cli.main([*command, "--env", LEFT, "--execute", "4", "--ensemble", "none", "--json"]) == cli.DONE
    assert [each["task"] for each in said(capsys)["results"]] == ["left"]
    assert cli.main(command) == cli.DONE
    assert "95 % interval" in capsys.readouterr().out


def test_rollouts_start_from_the_seeds_of_the_test(run: Path) -> None:
    scores = json.loads((run / "run.json").read_text(encoding="utf-8"))["scores"]
    assert hw.load(run).rollout(episodes=4)["steps_mean"] == scores["steps_mean"]


def test_evaluate(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(("reach", "left")))
    assert cli.main(["evaluate", str(run), "--json"]) == cli.DONE
    assert said(capsys)["samples"] == 8
    assert cli.main(["evaluate", str(run), "--data", "other.npz", "--json"]) == cli.DONE
    found = said(capsys)
    assert (found["split"], found["loss"] > 0) == ("all", True)


def test_a_rollout_is_filmed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")
    film = tmp_path / "a.mp4"
    assert cli.main(["rollout", str(run), "--episodes", "1", "--render", str(film), "--json"]) == cli.DONE
    steps = said(capsys)["results"][0]["success_steps"][0] or 30
    with av.open(str(film)) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == steps + 14  # the end is held for 0.7 s of 20 frames


def test_a_policy_of_a_run(run: Path) -> None:
    policy = hw.load(run).policy("left")
    action = policy.select_action({"state": np.zeros(4)})
    assert action.shape == (2,)
    with pytest.raises(UserError, match="the task 'swim' has no word that this policy knows"):
        hw.load(run).policy("swim")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "Pendulum-v1"], "takes actions of 1 number, but this policy outputs 2 numbers"),
        (["--env", "HeadwayReech-v0"], "did you mean 'HeadwayReach-v0'"),
        (["--env", REACH, "CartPole-v1"], "takes actions of 2 choices"),
        (["--render", "film.gif"], "film.gif does not have a video's extension"),
        (["--target-return", "3"], "is a robot policy, which has no target returns and no sampling"),
        (["--execute", "6"], "cannot execute 6 actions of a chunk of 5"),
        (["--ensemble", "much"], "'much'"),
    ],
)
def test_rollouts_that_cannot_be(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollout", str(run), *words]) == cli.USER_ERROR
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_start_keeps_its_scales(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(("reach", "left"), seed=4))
    place = tmp_path / "on"
    hw.train(tiny(**{"train.steps": 1}), "any.npz", run=place, start=run, progress=False, samples=0)
    before, after = (json.loads((each / "robotics.json").read_text()) for each in (run, place))
    assert before["mean"] == after["mean"]
    data = made(("reach", "left"))
    given(monkeypatch, replace(data, states=np.hstack([data.states, data.states])))
    with pytest.raises(
        (ConfigError, UserError), match="the data have states of 8 numbers, but this policy takes 4 numbers"
    ):
        hw.train(tiny(), "any.npz", run=tmp_path / "no", start=run, progress=False)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.state": 2}, "task.state is 2, but the policy to fine-tune has 4; do not set task.state"),
        ({"task.text": False}, "task.text is False, but the policy to fine-tune has True"),
        ({"task.cameras": ["top"]}, r"task.cameras is \('top',\), but the policy to fine-tune has \(\)"),
    ],
)
def test_settings_that_a_start_does_not_have(
    settings: dict[str, Any], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, made(("reach", "left"), cameras=("top",)))
    with pytest.raises(ConfigError, match=message):
        hw.train(tiny(**settings), "any.npz", run=tmp_path / "no", start=run, progress=False)
    assert not (tmp_path / "no").exists()


def test_tasks_that_a_start_has_no_words_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given(monkeypatch, replace(made(("reach", "left")), task_names=("swim", "left")))
    with pytest.raises(
        UserError, match="'swim' has no word that this policy knows; choose one of its tasks: 'reach', 'l"
    ):
        hw.train(tiny(), "any.npz", run=tmp_path / "no", start=run, progress=False)
    assert not (tmp_path / "no").exists()
    given(monkeypatch, made(("reach", "left")))
    hw.train(
        tiny(**{"task.scaling": "deviation", "train.steps": 1}), "any.npz", run=tmp_path / "on", start=run, samples=0
    )
    assert "ignoring task.scaling=deviation; the policy to fine-tune was trained with task.scaling=range" in caplog.text


def test_shows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(run), "--json"]) == cli.DONE
    shown = said(capsys)
    assert shown["tree"][0] == "chunks of 5 actions with 2 dimensions, by regression"
    assert shown["generates"] is None


def test_models_that_do_not_act_are_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="episodes is 0 and seed is None; use at least 1 episode"):
        hw.load(run).rollout(episodes=0)
    with pytest.raises(UserError, match="episodes is 1 and seed is -1; use at least 1 episode"):
        hw.load(run).rollout(episodes=1, seed=-1)


def test_other_models_are_no_policies(run: Path, tmp_path: Path) -> None:
    (run / "robotics.json").rename(tmp_path / "kept.json")
    try:
        with pytest.raises(UserError, match=r"has no robotics\.json"):
            hw.load(run).rollout()
    finally:
        (tmp_path / "kept.json").rename(run / "robotics.json")
