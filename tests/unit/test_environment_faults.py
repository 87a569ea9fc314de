"""What goes wrong while episodes are recorded and models are judged: nothing is lost, or wrong without a word."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_module import own_module
from trajectory_data import made, saved, tiny

import headway as hw
from headway.app.cli import main as cli
from headway.data import episode_files
from headway.data.episode_files import read_episodes, write_episodes
from headway.data.episodes import concatenate_episodes
from headway.domains.trajectories.task import film_strips
from headway.environments.factory import Spaces
from headway.environments.recording import EpisodeImages, Mixture, Recorder, SuccessFilter
from headway.environments.rollouts import SEEDS, first_seed
from headway.environments.vector_env import Step, VectorEnv
from headway.errors import UserError

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

OWN = '''
import gymnasium
import numpy as np

class Canvas(gymnasium.Env):
    """Draws each state into the same memory; from step `wrong` of its third episode on it is NaN."""
    closed = 0
    metadata = {"render_fps": 10}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    wrong = None

    def __init__(self):
        self.seen, self.episode = np.zeros(2, np.float32), 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.steps = self.episode + 1, 0
        self.seen[:] = 0
        return self.seen, {}

    def step(self, action):
        self.steps += 1
        self.seen[:] = np.nan if self.episode == 3 and self.steps == self.wrong else self.steps
        return self.seen, 1.0, self.steps == 4, False, {}

    def close(self):
        type(self).closed += 1

class Diverges(Canvas):
    wrong = 2

class Several(Canvas):
    action_space = gymnasium.spaces.MultiDiscrete([2, 2])

class Once(Canvas):
    """Its task is done in the episode of seed 0 alone."""
    def reset(self, *, seed=None, options=None):
        self.lucky = seed == 0
        return super().reset(seed=seed)

    def step(self, action):
        return *super().step(action)[:4], {"success": self.lucky}

class Fast(Canvas):
    metadata = {"render_fps": 500}

class Slow(Canvas):
    metadata = {"render_fps": 20}
'''

REGISTERED = """
import gymnasium
from canvas import Canvas

class Bare(Canvas):
    metadata = {"render_modes": ["rgb_array"]}

def lost(**given):
    raise KeyError("a map")

gymnasium.register("HeadwayBare-v0", entry_point=Bare)
gymnasium.register("HeadwayLost-v0", entry_point=lost)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_module(tmp_path, "canvas", OWN, monkeypatch)


def collect(*words: str) -> int:
    return cli.main(["data", "collect", *words])


def test_states_are_those_of_their_steps_in_memory_that_is_used_again(own: Path) -> None:
    assert collect("canvas:Canvas", "--episodes", "2", "--at-once", "1", "--horizon", "9", "--out", "a.npz") == 0
    assert read_episodes([own / "a.npz"]).states[:, 0].tolist() == [0, 1, 2, 3] * 2


def test_an_episode_that_diverges_does_not_take_the_others_with_it(own: Path, capsys: Any) -> None:
    words = ("canvas:Diverges", "--episodes", "5", "--at-once", "1", "--horizon", "9", "--out", "a.npz")
    assert collect(*words) == 2
    said = capsys.readouterr().err
    assert "returned a state with nan, which is not finite" in said
    assert "2 finished episodes are in a.npz" in said
    assert len(read_episodes([own / "a.npz"])) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("canvas:Canvas", "canvas:Slow", "--horizon", "9", "--out", "both"),
            "20 steps per second, but 'canvas:Canvas' has 10",
        ),
        (("canvas:Fast", "--horizon", "9", "--out", "fast"), "500 steps per second, but videos have at most 240"),
        (("canvas:Canvas", "--horizon", "9", "--out", "canvas.py/a.npz"), "cannot be written"),
        (("canvas:Canvas", "--horizon", "9", "--out", "a.npz", "--seed", "1999990"), "use a seed below 999,901"),
        (("canvas:Canvas", "--out", "a.npz", "--episodes", "1000001"), "use at most 1,000,000"),
        (("metaworld/reach-v3", "--out", "a.npz", "--episodes", "250001"), "use at most 250,000"),
        (("metaworld/reach-v3", "--out", "a.npz", "--seed", "999900"), "use a seed below 999,601"),
        (("canvas:Canvas", "--policy", "expert", "--out", "a.npz", "--seed", "999601"), "use a seed below 999,601"),
        (("canvas:Canvas", "--policy", "expert", "--out", "a.npz", "--seed", "999600"), "there is no expert"),
    ],
)
def test_what_cannot_be_recorded_is_told_before(
    words: tuple[str, ...], message: str, own: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'headway[robotics]'")
    monkeypatch.setattr(VectorEnv, "reset", lambda *given: pytest.fail("an episode was begun"))
    assert collect(*words) == 2
    assert message in capsys.readouterr().err


def test_episodes_in_place_of_failures_are_so_many_at_most(own: Path) -> None:
    """Their numbers, and so their seeds, are below four times the episodes that are asked for."""
    with VectorEnv("canvas:Once", 1) as copies:
        recorder = Recorder(copies, [Mixture(None, 0.0)], 0, 2, SuccessFilter())
        with pytest.raises(UserError, match="in 1 of 12 episodes"):
            recorder.run(3, 1)
    assert (list(recorder.finished), recorder.failed) == ([0], 11)


@pytest.mark.parametrize(
    ("name", "cameras", "message"),
    [("canvas:Several", (), "has the action space MultiDiscrete"), ("canvas:Canvas", ("front",), "has no cameras")],
)
def test_environments_of_copies_that_cannot_be_are_closed(
    name: str, cameras: tuple[str, ...], message: str, own: Path
) -> None:
    with pytest.raises(UserError, match=message):
        VectorEnv(name, 3, cameras=cameras)
    assert getattr(sys.modules["canvas"], name.partition(":")[2]).closed == 3


def test_a_registered_environment_needs_no_render_mode(
    own: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be drawn, or made, is told, and a finished run goes on to its report."""
    own_module(own, "registered", REGISTERED, monkeypatch)
    with VectorEnv("registered:HeadwayBare-v0", 1) as copies:
        assert copies.reset(0, 0).tolist() == [0, 0]
    with pytest.raises(UserError, match=r"'HeadwayBare-v0' cannot be created .TypeError: .*render_mode"):
        VectorEnv("HeadwayBare-v0", 1, render=True)
    with pytest.raises(UserError, match=r"'HeadwayLost-v0' cannot be created .KeyError: 'a map'.; correct its code"):
        VectorEnv("HeadwayLost-v0", 1)
    assert film_strips(None, None, "HeadwayBare-v0", [1.0]) == []  # type: ignore[arg-type]
    assert "cannot render episodes for the report" in caplog.text
    (own / "spoilt.py").write_text("nothing.at_all\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"the module 'spoilt' cannot be imported .name 'nothing' is not defined"):
        VectorEnv("spoilt:Any", 1)


def test_more_episodes_are_filmed_than_files_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="this system does not limit open files so")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as file:
        few = file.fileno() + 64  # beside those that other tests have left open
    pictures = {number: np.full((2, 4, 6, 3), number, np.uint8) for number in range(100)}
    with EpisodeImages(tmp_path) as shots:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            for number, each in pictures.items():
                shots.add(0, number, {"front": each, "side": each + 100})
            frames = [shots.frames(0, dict.fromkeys(pictures, 2), camera) for camera in ("front", "side")]
            seen = [each.read(np.arange(200)[::-1]) for each in frames]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wanted = np.concatenate(list(pictures.values()))[::-1]
    np.testing.assert_array_equal(seen, [wanted, wanted + 100])
    assert [(len(each), each.size) for each in frames] == [(200, (4, 6))] * 2


@pytest.mark.parametrize("kind", [UserError, OSError])
def test_what_its_place_does_not_take_is_written_elsewhere(
    kind: type[Exception], own: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = episode_files.write_episodes

    def full(path: Path, episodes: Any) -> None:
        if path == Path("a.npz"):
            raise kind("a.npz cannot be written (No space left on device); choose another place with --out")
        real(path, episodes)

    monkeypatch.setattr(tempfile, "tempdir", str(own))
    monkeypatch.setattr(episode_files, "write_episodes", full)
    assert collect("canvas:Canvas", "--episodes", "3", "--horizon", "9", "--out", "a.npz") == 2
    said = capsys.readouterr().err
    assert "No space left" in said
    place = Path(said.rstrip().rpartition(" ")[2])
    assert len(read_episodes([place])) == 3


def test_seeds_of_recordings_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert first_seed(None) == SEEDS["test"]
    assert first_seed(SEEDS["validation"]) == SEEDS["validation"]
    assert not caplog.records
    assert first_seed(0) == 0
    assert "may have been trained on these episodes" in caplog.text


def test_episodes_of_two_environments_are_not_one_set() -> None:
    one, other = made(), made()
    object.__setattr__(other, "environments", ("CartPole-v0",))
    assert len(concatenate_episodes([one, other], ["a", "b"])) == 60  # versions of one
    object.__setattr__(other, "environments", ("Acrobot-v1",))
    with pytest.raises(UserError, match="b was recorded in Acrobot-v1, but a in CartPole-v1"):
        concatenate_episodes([one, other], ["a", "b"])


def test_a_run_is_judged_on_data_and_by_goals_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(tmp_path)
    run = hw.train(tiny(), data=data, run=tmp_path / "run", progress=False, samples=0)
    for other, message in (
        ({"states": 3}, "the data have states of 3 numbers, but this model takes 4 numbers"),
        ({"discrete": False}, "the data have actions of 1 number, but this model has 2 choices"),
    ):
        with pytest.raises(UserError, match=message):
            hw.load(run.directory).evaluate(saved(tmp_path, f"{len(message)}.npz", **other))
    with pytest.raises(UserError, match="no episodes are played in the split 'train'; use validation, test, all"):
        hw.load(run.directory).evaluate(split="train")
    status = json.loads((run.directory / "run.json").read_text())
    (run.directory / "run.json").write_text(json.dumps(status | {"goal": "loss", "status": "interrupted"}))
    with pytest.raises(UserError, match="selected its best model by loss, but would now use return_mean"):
        hw.train(tiny(), data=data, run=run.directory, resume=True, progress=False)


def test_more_choices_than_an_environment_has_are_told(tmp_path: Path) -> None:
    episodes = made()
    episodes.actions[5] = 3
    write_episodes(tmp_path / "a.npz", episodes)
    with pytest.raises(UserError, match="the choice 3, but this model has 2 choices, starting at 0"):
        hw.train(tiny(), data=tmp_path / "a.npz", run=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "much"])
def test_a_return_is_a_number(value: str, capsys: Any) -> None:
    assert cli.main(["rollout", "runs/none", "--target-return", value]) == 2
    assert "is not a number" in capsys.readouterr().err


def test_success_that_is_told_at_the_end_alone_counts() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'headway[robotics]'")
    policy = importlib.import_module("headway.domains.robotics.policy")  # the package has a function of this name

    class Told:
        """Each episode lasts three steps, and says with the last whether it succeeded."""

        spaces = Spaces((2,), False, None, 1, np.full(1, -1.0), np.full(1, 1.0))
        horizon, name = 10, "told"

        def __init__(self) -> None:
            self.steps = {0: 0, 1: 0}

        def __len__(self) -> int:
            return 2

        def reset(self, row: int, seed: int) -> np.ndarray:
            return np.zeros(2, np.float32)

        def step(self, row: int, action: Any) -> Step:
            self.steps[row] += 1
            last = self.steps[row] == 3
            return Step(np.zeros(2, np.float32), 0.0, last, False, (row == 1) if last else None)

    class Still:
        def __init__(self, *given: Any) -> None:
            self.rows = 2

        def act(self, look: Any) -> np.ndarray:
            return np.zeros((self.rows, 1))

        def keep_rows(self, rows: np.ndarray) -> None:
            self.rows = len(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "PolicyRunner", Still)
        played = policy.play(None, None, Told(), "task", range(2))  # type: ignore[arg-type]
    assert played.succeeded is not None
    assert played.succeeded.tolist() == [0, 3]
