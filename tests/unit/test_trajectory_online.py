"""Decision transformers that go on learning from their own episodes: the buffer, exact resuming, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_module import own_module
from tiny_models import stirred
from tiny_runs import cut_back, weights
from trajectory_data import opened, saved, tiny

import headway as hw
from headway.app import api
from headway.data.episode_files import write_episodes
from headway.domains.trajectories.task import online_curve
from headway.environments.recording import Mixture, Recorder
from headway.environments.rollouts import training_seed
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

OWN = '''
import gymnasium
import numpy as np

class Lamp(gymnasium.Env):
    """Which of three lamps is on is shown; to press its button is worth 1. Eight presses are an episode."""
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        self.lamp = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.lamp]

    def step(self, action):
        self.steps += 1
        reward = float(action == self.lamp)
        return self.look(), reward, self.steps == 8, False, {}

class Target(gymnasium.Env):
    """The number that is shown is to be said, from -2 to 2; what is farther away than 2 counts as 2."""
    observation_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-4, 4, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        self.number = self.np_random.uniform(-2, 2, 1).astype(np.float32)
        return self.number

    def step(self, action):
        self.steps += 1
        reward = -min(2.0, float(abs(action[0] - self.number[0])))
        return self.look(), reward, False, self.steps == 6, {}

class Fails(Lamp):
    def step(self, action):
        raise ZeroDivisionError("by wheels")
'''
ONLINE = {"task.online.episodes": 3, "task.online.every": 2, "task.online.after": 2, "task.random": 0}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Names an environment of the module, and gives the file of some episodes of chance in it."""
    own_module(tmp_path, "rooms", OWN, monkeypatch)
    monkeypatch.setattr(api, "available", lambda: False)  # a page takes as long as what is tested here

    def record(name: str, count: int = 24) -> Path:
        monkeypatch.setenv("HEADWAY_ENV", name)
        with VectorEnv(name, 4) as copies:
            recorder = Recorder(copies, [Mixture(None, 1.0)], seed=0, horizon=20)
            recorder.run(count, num_parallel=4)
            write_episodes(tmp_path / "chance.npz", recorder.episodes())
        return tmp_path / "chance.npz"

    return record


def playing(path: Path, workspace: Path, **settings: Any) -> Any:
    """The task with a model that plays for it."""
    task = opened(path, workspace, **{**ONLINE, **settings})
    task.examples.start_exploring(stirred(task, tiny(**{**ONLINE, **settings}), 0.2))
    return task


def shown(batch: Any) -> list[torch.Tensor]:
    return [batch.inputs[0].states, batch.inputs[0].returns, batch.targets[0]]


def test_before_it_plays_batches_are_those_of_the_recorded_episodes(recorded: Any, tmp_path: Path) -> None:
    path = recorded("rooms:Lamp")
    streams = [each.batches("train") for each in (playing(path, tmp_path), opened(path, tmp_path))]
    first, second, third = ([shown(next(stream)) for stream in streams] for _ in range(3))
    assert all(torch.equal(a, b) for pair in (first, second) for a, b in zip(*pair))
    assert not all(torch.equal(a, b) for a, b in zip(*third))


@pytest.mark.parametrize("env", ["rooms:Lamp", "rooms:Target"])
def test_batches_hang_on_weights_number_and_buffer_alone(env: str, recorded: Any, tmp_path: Path) -> None:
    """So that what `explored` gives is all that a checkpoint needs."""
    task, again = (playing(recorded(env), tmp_path) for _ in range(2))
    stream = task.batches("train")
    for _ in range(5):
        next(stream)
    state = {name: tensor.clone() for name, tensor in task.examples.exploration_state().items()}
    wanted = [shown(next(stream)) for _ in range(4)]
    again.examples.load_exploration_state(state)
    found = [shown(batch) for batch, _ in zip(again.batches("train", start=5), range(4))]
    assert all(torch.equal(a, b) for one, other in zip(wanted, found) for a, b in zip(one, other))
    assert again.examples.curve == task.examples.curve
    assert len(task.examples.curve) == 12


def test_its_own_episodes_are_what_happened(recorded: Any, tmp_path: Path) -> None:
    """Played again, their actions bring the same states and rewards; returns-to-go are those that were reached."""
    task = playing(recorded("rooms:Target"), tmp_path, **{"task.online.after": 0})
    next(task.batches("train"))
    episodes, known = task.examples.episodes, len(task.examples.recorded)
    with VectorEnv("rooms:Target", 1) as copies:
        for number, (asked, reached, steps) in enumerate(task.examples.curve):
            places = range(int(episodes.starts[known + number]), int(episodes.ends[known + number]))
            state = copies.reset(0, training_seed(16, task.examples.seed, number))
            for place in places:
                np.testing.assert_array_equal(state, episodes.states[place])
                after = copies.step(0, episodes.actions[place])
                assert after.reward == pytest.approx(episodes.rewards[place])
                state = after.state
            assert (len(places), float(episodes.rewards[list(places)].sum())) == (steps, pytest.approx(reached))
            assert asked > task.examples.recorded.returns.max()
            first = places[0]
            assert task.examples.to_go[first] * task.examples.codec.scale == pytest.approx(reached, rel=1e-5)


@pytest.mark.parametrize("drop", ["oldest", "worst"])
def test_what_leaves_a_full_buffer(drop: str, recorded: Any, tmp_path: Path) -> None:
    keep = {"task.online.keep": 4, "task.online.drop": drop, "task.online.after": 0}
    task = playing(recorded("rooms:Lamp"), tmp_path, **keep)
    examples, stream = task.examples, task.batches("train")
    given = np.sort(examples.recorded.returns[examples.splits.indices["train"]])
    next(stream)
    own = [reached for _, reached, _ in examples.curve]
    train = examples.splits.indices["train"]
    found = sorted(examples.episodes.returns[train].tolist())
    if drop == "oldest":
        assert found == sorted([given[-1], *own])
    else:
        assert found == sorted([*given[-4:], *own])[-4:]
    next(stream)
    next(stream)
    found = sorted(examples.episodes.returns[examples.splits.indices["train"]].tolist())
    own = [reached for _, reached, _ in examples.curve]
    if drop == "oldest":  # the newest of its own alone
        assert found == sorted(own[-4:])
    else:
        assert found == sorted([*given[-4:], *own])[-4:]
    held = {side: rows.tolist() for side, rows in examples.splits.indices.items() if side != "train"}
    assert held == {
        side: rows.tolist()
        for side, rows in opened(tmp_path / "chance.npz", tmp_path).examples.splits.indices.items()
        if side != "train"
    }


@pytest.mark.parametrize(("env", "mixer"), [("rooms:Lamp", "attention"), ("rooms:Target", "lstm")])
def test_a_run_goes_on_bit_for_bit_and_two_are_equal(env: str, mixer: str, recorded: Any, tmp_path: Path) -> None:
    path, settings = recorded(env), {"train.steps": 9, "train.checkpoint_every": 2, "model.mixer": mixer}
    recipe = tiny(**{**ONLINE, **settings, "train.evaluate_every": 3})
    runs = [hw.train(recipe, path, run=tmp_path / name, progress=False, samples=0).directory for name in "ab"]
    for step in (2, 6):  # before it has played, and between two times
        runs.append(cut_back(runs[0], tmp_path / f"from-{step}", step=step))
        hw.train(recipe, path, run=runs[-1], resume=True, progress=False, samples=0)
    kept = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    lines = [[{k: v for k, v in line.items() if "second" not in k} for line in each] for each in kept]
    for run, each in zip(runs, lines):
        assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(runs[0]).items())
        assert each == lines[0]
        assert (run / "trajectories.json").read_text() == (runs[0] / "trajectories.json").read_text()
    assert [line["episodes_played"] for line in lines[0] if "split" in line] == [3, 6, 12]


@pytest.mark.parametrize(
    ("env", "start", "least", "settings"),
    [
        ("rooms:Lamp", False, 6.5, {"task.online.after": 10, "train.steps": 130}),
        ("rooms:Target", True, -3.5, {"train.steps": 120}),
    ],
)
def test_it_learns_from_its_own_episodes(
    env: str, start: bool, least: float, settings: dict[str, Any], recorded: Any, tmp_path: Path
) -> None:
    """From episodes of chance; in the same run, or from one that has learnt of them alone."""
    path, begun = recorded(env), {}
    common = {"task.episodes": 8, "train.batch_size": 32, "optim.lr": 3e-3, "optim.kind": "adamw", "task.context": 1}
    common["train.evaluate_every"] = 60
    if start:
        recipe = tiny(**{**common, "train.steps": 30})
        begun["start"] = hw.train(recipe, path, run=tmp_path / "before", progress=False, samples=0).directory
    online = {"task.online.episodes": 8, "task.online.every": 8, "task.online.drop": "worst", "task.online.keep": 30}
    run = hw.train(
        tiny(**{**common, **online, **settings}), path, run=tmp_path / "run", progress=False, samples=2, **begun
    )
    scores = run.summary["scores"]
    assert scores["return_mean"] >= least
    model = hw.load(run.directory)
    assert model.rollout(env, episodes=8)["return_mean"] == scores["return_mean"]  # it is asked for the same
    examples: Any = run.task.examples
    assert scores["target_return"] == examples.episodes.returns[examples.splits.indices["train"]].max()


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ("", {}, "task.online.episodes is 3, but no environment is known; set task.env, or HEADWAY_ENV=module:Name"),
        ("", {"task.env": "Lampe-v1"}, "there is no environment 'Lampe-v1'"),
        ("", {"task.env": "Pendulum-v1"}, "takes actions of 1 number, but this model outputs 3 choices"),
        ("", {"task.env": "rooms:Lamp"}, "'rooms:Lamp', which would run its own code"),
        ("rooms:Fails", {}, "'rooms:Fails' failed in its step .ZeroDivisionError: by wheels"),
        ("rooms:Lamp", {"task.episodes": 0}, "online training is evaluated by playing; set task.episodes to 1 or more"),
        ("rooms:Lamp", {"task.condition": False}, "without task.condition"),
        ("rooms:Lamp", {"task.online.episodes": -1}, "task.online.episodes is -1; choose 0 or more"),
        ("rooms:Lamp", {"task.online.every": 0}, "task.online.every is 0; choose 1 or more"),
        ("rooms:Lamp", {"task.online.keep": 0}, "task.online.keep is 0; choose 1 or more"),
        ("rooms:Lamp", {"task.online.noise": float("nan")}, "task.online.noise is nan; use a finite number"),
        ("rooms:Lamp", {"task.online.target": float("inf")}, "task.online.target is inf; use a finite number"),
        ("rooms:Lamp", {"task.online.drop": "best"}, "'best'; choose from: oldest, worst"),
        ("rooms:Lamp", {"task.online.episodes": "many"}, "task.online.episodes is 'many'; use an integer"),
        ("rooms:Lamp", {"task.online": 5}, "task.online is 5; use a mapping of settings"),
    ],
)
def test_what_cannot_be_learnt_so_is_told(
    env: str, settings: dict[str, Any], message: str, recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recorded("rooms:Lamp")
    monkeypatch.setenv("HEADWAY_ENV", env)
    with pytest.raises(UserError, match=message):
        hw.train(tiny(**{**ONLINE, **settings}), path, run=tmp_path / "run", progress=False)


def test_without_episodes_it_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has no data; pass your own with --data"):
        hw.train("trajectories", set={**ONLINE, "task.env": "CartPole-v1"}, progress=False)
    with pytest.raises(ConfigError, match=r"without task\.condition"):
        hw.train(tiny(**ONLINE, **{"task.condition": False}), saved(tmp_path), progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_other_episodes_is_told(recorded: Any, tmp_path: Path) -> None:
    state = playing(recorded("rooms:Lamp"), tmp_path).examples.exploration_state()
    other = playing(recorded("rooms:Lamp", count=6), tmp_path).examples
    with pytest.raises(UserError, match="recorded episodes, but the data have 6; resume with the original data"):
        other.load_exploration_state(state)


def test_the_page_shows_returns_over_the_episodes_played() -> None:
    (picture,) = online_curve([(9.0, float(number), 4.0) for number in range(7)])
    assert "episodes played" in str(picture)
    assert "averages over 7 episodes" in picture.caption
    assert online_curve([(9.0, 1.0, 4.0)]) == []
