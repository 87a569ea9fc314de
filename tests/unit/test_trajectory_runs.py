"""Runs of trajectories from end to end: train, resume, evaluate, roll out, film, record, by the command line."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import cut_back, weights
from trajectory_data import saved, tiny

import headway as hw
from headway.app.cli import main as cli
from headway.data.episode_files import read_episodes
from headway.errors import UserError
from headway.learn.run import check_scores

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in CartPole, judged there, with its report."""
    place = tmp_path_factory.mktemp("runs") / "cart"
    found = hw.train(tiny(), data=data, run=place, progress=False, samples=3)
    assert found.summary["goal"] == "return_mean"
    return place


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_says_what_it_is_worth(run: Path) -> None:
    scores = json.loads((run / "run.json").read_text(encoding="utf-8"))["scores"]
    assert scores["split"] == "test"
    low, high = scores["return_mean_interval"]
    assert low <= scores["return_mean"] <= high
    assert scores["samples"] == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("return_mean" in line for line in lines)


def test_a_run_says_whether_it_heeds_the_return_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remark = json.loads((run / "run.json").read_text(encoding="utf-8"))["remark"]
    assert remark.startswith("For target returns from ")
    assert remark in html.unescape((run / "report.html").read_text(encoding="utf-8"))
    for _ in range(2):  # what the first one writes into the run is what the second one reads
        assert cli.main(["evaluate", str(run), "--json"]) == cli.DONE
        assert said(capsys)["remark"].startswith("For target returns from ")
    check_scores({"split": "test", "remark": remark}, "run.json")


def test_the_report_shows_returns_and_film(run: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'headway[report]'")
    pytest.importorskip("pygame", reason="pygame is not installed: pip install 'headway[rl]'")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "target return" in page
    assert "data:image/png;base64," in page
    assert "95 % from" in page
    assert "timesteps per second" in page


def test_a_run_goes_on_bit_for_bit(run: Path, data: Path, tmp_path: Path) -> None:
    before = cut_back(run, tmp_path / "again", step=3)
    hw.train(tiny(), data=data, run=before, resume=True, progress=False, samples=1)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(before)[name]), name
    lines = [(each / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for each in (run, before)]
    losses = [[json.loads(line).get("return_mean", json.loads(line)["loss"]) for line in each] for each in lines]
    assert losses[0] == losses[1]


def test_rollout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rollout", str(run), "--episodes", "3", "--target-return", "5", "20", "--seed", "7"]
    assert cli.main([*command, "--json"]) == cli.DONE
    found = said(capsys)
    assert (found["environment"], found["seed"], found["samples"], found["target_return"]) == ("CartPole-v1", 7, 3, 5.0)
    assert [each["target_return"] for each in found["results"]] == [5.0, 20.0]
    assert all(len(each["returns"]) == 3 for each in found["results"])
    assert found["return_mean"] == pytest.approx(sum(found["results"][0]["returns"]) / 3)
    again = hw.load(run).rollout(episodes=3, target_return=[5.0, 20.0], seed=7)
    assert again["results"] == found["results"]
    assert cli.main(command) == cli.DONE
    assert "target return" in capsys.readouterr().out


def test_choices_may_be_drawn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same from the same seeds, and not what the most probable are."""
    found = []
    for more in (["--draw"], ["--draw"], []):
        assert cli.main(["rollout", str(run), "--episodes", "3", "--json", *more]) == cli.DONE
        found.append(said(capsys)["results"])
    assert found[0] == found[1] != found[2]


def test_rollouts_start_from_the_seeds_of_the_test(run: Path) -> None:
    scores = json.loads((run / "run.json").read_text(encoding="utf-8"))["scores"]
    assert hw.load(run).rollout(episodes=2)["return_mean"] == scores["return_mean"]


def test_evaluate(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run), "--json"]) == cli.DONE
    assert said(capsys)["samples"] == 2
    assert cli.main(["evaluate", str(run), "--data", str(data), "--json"]) == cli.DONE
    assert said(capsys)["split"] == "all"


def test_a_rollout_is_filmed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")
    pytest.importorskip("pygame", reason="pygame is not installed: pip install 'headway[rl]'")
    film = tmp_path / "a.mp4"
    for more, every in (([], 2), (["--speed", "2"], 4)):  # of 50 steps per second, at most 30 frames are shown
        assert cli.main(["rollout", str(run), "--episodes", "2", "--render", str(film), *more, "--json"]) == cli.DONE
        found = said(capsys)
        with av.open(str(film)) as opened:
            frames = sum(1 for _ in opened.decode(video=0))
        steps = [int(each) for each in found["results"][0]["returns"]]  # a reward of 1 for each
        assert frames == sum(-(-each // every) for each in steps) + 2 * round(0.7 * 25)
        assert found["render"] == str(film)


OWN = """
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Slow(CartPoleEnv):
    def step(self, action):
        seen, reward, ended, cut, more = super().step(action)
        return seen, 0.5 * reward, ended, cut, more
"""


def test_an_environment_of_ones_own(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By --env, and in training by HEADWAY_ENV; afterwards the run does not ask for it by itself."""
    (tmp_path / "slowly.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main(["rollout", str(run), "--env", "slowly:Slow", "--episodes", "2", "--json"]) == cli.DONE
    found = said(capsys)
    assert found["return_mean"] == pytest.approx(0.5 * found["length_mean"])
    monkeypatch.setenv("HEADWAY_ENV", "slowly:Slow")
    trained = hw.train(tiny(**{"train.steps": 1}), data=data, run=tmp_path / "own", progress=False, samples=2)
    assert trained.summary["scores"]["return_mean"] == pytest.approx(0.5 * trained.summary["scores"]["length_mean"])
    monkeypatch.delenv("HEADWAY_ENV")
    assert cli.main(["rollout", str(tmp_path / "own")]) == cli.USER_ERROR
    assert "which would run its own code; allow it with --env slowly:Slow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "Pendulum-v1"], "takes actions of 1 number, but this model outputs 2 choices"),
        (["--env", "Acrobot-v1"], "takes actions of 3 choices, but this model outputs 2 choices"),
        (["--env", "CartPoll-v1"], "did you mean 'CartPole-v1'?"),
        (["--render", "film.gif"], "film.gif does not have a video's extension"),
        (["--speed", "2"], "--speed needs a video; add --render FILE.mp4"),
        (["--episodes", "0"], "'0' is not an integer of at least 1"),
        (["--target-return", "much"], "'much' is not a number from"),
    ],
)
def test_rollouts_that_cannot_be(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollout", str(run), *words]) == cli.USER_ERROR
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_other_models_do_not_act(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.config import override
    from headway.formats.native import save_model
    from headway.nn.models import build
    from headway.nn.models.presets import preset

    config = override(preset("gpt-1m"), {"width": 16, "depth": 1, "heads": 1})
    save_model(build(config), config, tmp_path / "text")
    with pytest.raises(UserError, match="is a language model, which cannot play episodes"):
        hw.load(tmp_path / "text").rollout()
    (run / "trajectories.json").rename(tmp_path / "kept.json")
    try:
        with pytest.raises(UserError, match=r"has no trajectories\.json"):
            hw.load(run).rollout()
    finally:
        (tmp_path / "kept.json").rename(run / "trajectories.json")


def test_collect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.npz"
    command = ["data", "collect", "CartPole-v1", "--episodes", "6", "--at-once", "2", "--seed", "3", "--out", str(out)]
    assert cli.main([*command, "--mix", "0", "1", "--json"]) == cli.DONE
    found, episodes = said(capsys), read_episodes([out])
    assert (found["episodes"], found["steps"]) == (6, len(episodes.rewards))
    assert found["return_mean"] == pytest.approx(episodes.returns.mean())
    assert cli.main(command) == cli.USER_ERROR
    assert "already exists" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "a.csv")]) == cli.USER_ERROR
    assert "use a name ending in .npz" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "b.npz"), "--policy", "clever"]) == cli.USER_ERROR
    assert "unknown policy 'clever'" in capsys.readouterr().err
    assert not (tmp_path / "b.npz").exists()


def test_what_was_recorded_before_an_interrupt_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from headway.environments.vector_env import VectorEnv

    step, calls = VectorEnv.step, iter(range(10_000))

    def interrupted(self: VectorEnv, row: int, action: Any) -> Any:
        if next(calls) == 200:
            raise KeyboardInterrupt
        return step(self, row, action)

    monkeypatch.setattr(VectorEnv, "step", interrupted)
    out = tmp_path / "a.npz"
    assert cli.main(["data", "collect", "CartPole-v1", "--at-once", "1", "--out", str(out)]) == cli.INTERRUPTED
    count = len(read_episodes([out]))
    assert f"{count} finished episodes are in {out}" in capsys.readouterr().err
    assert count > 0


def test_exports_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers as actions have a published form; a run of choices has none, and says so."""
    settings = {"task.states": 0.1, "task.returns": 0.1, "task.episodes": 0, "train.steps": 1}
    hw.train(tiny(**settings), saved(tmp_path, discrete=False), run=tmp_path / "run", progress=False, samples=0)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == cli.DONE
    settings = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (settings["model_type"], settings["state_dim"], settings["n_positions"]) == ("decision_transformer", 4, 1)
    capsys.readouterr()
    assert cli.main(["show", "decision-hopper", "--json"]) == cli.DONE
    shown = said(capsys)
    assert (shown["parameters"], shown["generates"]) == (727_567, None)


def test_a_start_keeps_its_scales(run: Path, tmp_path: Path) -> None:
    """Fine-tuning reads states as the model knows them, whatever the new data say."""
    other = saved(tmp_path, seed=4)
    hw.train(tiny(**{"train.steps": 1}), other, run=tmp_path / "on", start=run, progress=False, samples=1)
    assert (tmp_path / "on" / "trajectories.json").read_text() == (run / "trajectories.json").read_text()
