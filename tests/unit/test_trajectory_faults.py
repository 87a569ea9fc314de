"""Where trajectories were judged, trained or played wrongly without a word: each is right now, or told in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_data import made, opened, saved, tiny

import headway as hw
from headway.app.cli import main as cli
from headway.data.episode_files import read_episodes, write_episodes
from headway.data.episodes import Episode, collate_episodes
from headway.domains.trajectories.trajectory_player import TrajectoryCodec
from headway.errors import ConfigError, UserError
from headway.formats.native import save_model
from headway.nn.models import build
from headway.nn.models.presets import decision_gym, preset

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
OFFLINE = {"task.episodes": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clones numbers, and is judged by held-out episodes."""
    folder = tmp_path_factory.mktemp("cloning")
    recipe = tiny(**OFFLINE, **{"task.condition": False, "train.steps": 1})
    hw.train(recipe, saved(folder, discrete=False), run=folder / "run", progress=False, samples=0)
    return folder / "run"


def test_all_of_the_data_is_without_what_the_run_recorded(tmp_path: Path) -> None:
    path = saved(tmp_path)
    task = opened(path, tmp_path, **{"task.random": 5})
    assert len(task.examples.episodes) == 35
    assert sum(batch.tokens for batch in task.batches("all")) == len(read_episodes([path]).rewards)


def test_a_few_episodes_judge_a_run_that_plays_nowhere(run: Path, tmp_path: Path) -> None:
    """Whichever side of a split they would stand on."""
    for seed in range(12):
        path = saved(tmp_path, f"{seed}.npz", discrete=False, count=1, seed=seed)
        assert hw.load(run).evaluate(path)["samples"] == len(read_episodes([path]).rewards)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"validation": 0.99, "test": 0.0},
            "the train split of 1 episodes is empty; add files named train, or lower",
        ),
        ({"validation": 0.0, "test": 0.0}, "the validation split of 1 episodes is empty"),
    ],
)
def test_training_goes_on_with_no_such_few(split: dict[str, float], message: str, run: Path, tmp_path: Path) -> None:
    path = saved(tmp_path, discrete=False, count=1)
    with pytest.raises(UserError, match=message):
        hw.train(tiny(**OFFLINE, **{"task.split": split}), path, run=tmp_path / "on", start=run, progress=False)
    assert not (tmp_path / "on").exists()


def test_a_head_of_numbers_says_no_choices(tmp_path: Path) -> None:
    """Nor one of choices numbers; a head of the same kind stays with what it has."""
    episodes = made(states=11)
    episodes.actions[3:5] = [2, 3]
    write_episodes(tmp_path / "four.npz", episodes)
    choices = opened(tmp_path / "four.npz", tmp_path, **OFFLINE)
    choices.examples.codec = replace(choices.examples.codec, choices=3)
    own: Any = choices.adapt(preset("decision-hopper")).heads["actions"]
    assert (own.outputs, own.activation) == (3, None)
    atari = preset("decision-atari")
    embed: Any = atari.embed  # type: ignore[attr-defined]
    atari = replace(atari, embed=replace(embed, states=decision_gym().embed.states))  # type: ignore[type-var]
    choices.examples.codec = replace(choices.examples.codec, choices=4)
    own = choices.adapt(atari).heads["actions"]
    assert (own.outputs, own.bias) == (4, False)
    numbers = replace(episodes, actions=np.zeros((len(episodes.actions), 4), np.float32))
    write_episodes(tmp_path / "numbers.npz", numbers)
    own = opened(tmp_path / "numbers.npz", tmp_path, **OFFLINE).adapt(atari).heads["actions"]
    assert (own.activation, own.bias) == ("tanh", True)


def test_next_states_that_are_images_are_refused(tmp_path: Path) -> None:
    settings = {"task.states": 1.0, "model.embed.states": {"kind": "patches", "patch": [4, 4]}}
    with pytest.raises(ConfigError, match=r"task.states is 1.0, but the states are images"):
        hw.train(tiny(**OFFLINE, **settings), saved(tmp_path, image=True), run=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "choices", "reach", "told"),
    [
        ((4,), 2, (), "states of 4 numbers and actions of 2 choices"),
        ((3,), 1, (), "states of 3 numbers and actions of 1 choice"),
        ((3,), None, (1.0, 1.0), "states of 3 numbers and actions of 2 numbers"),
        ((8, 9, 3), None, (1.0,), "states of 3 x 8 x 9 numbers and actions of 1 number"),
    ],
)
def test_scales_of_another_environment_are_told(
    shape: tuple[int, ...], choices: int | None, reach: tuple[float, ...], told: str, tmp_path: Path
) -> None:
    config = decision_gym(3, 1, width=16, depth=1, heads=1)
    save_model(build(config), config, tmp_path)
    numbers = shape[0] if len(shape) == 1 else 0  # images have no scales
    given = (0.0,) * numbers, (1.0,) * numbers
    TrajectoryCodec(shape, *given, 1.0, choices, reach, 4, 0.0, "Pendulum-v1").save(tmp_path)
    message = rf"takes states of 3 numbers and actions of 1 number, but its trajectories\.json has {told}"
    with pytest.raises(UserError, match=message):
        hw.load(tmp_path).rollout(episodes=1)


def test_an_episode_that_a_model_has_no_timesteps_for_is_told(run: Path, tmp_path: Path) -> None:
    short, long = (Episode(np.zeros((n, 4)), np.zeros((n, 1)), np.zeros(n)) for n in (20, 21))
    write_episodes(tmp_path / "a.npz", collate_episodes([short, long], "made"))
    model = hw.load(run)
    with pytest.raises(UserError, match="an episode has 21 steps, but this model has 20 timesteps"):
        model.evaluate(tmp_path / "a.npz")
    assert model.evaluate(tmp_path / "a.npz", limit=1)["samples"] == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target-return", "3"], "does not use target returns; remove --target-return"),
        (["--draw"], "outputs actions of 1 number, which are not sampled; remove --draw"),
    ],
)
def test_what_a_model_has_no_use_for_is_refused(words: list[str], message: str, run: Path, capsys: Any) -> None:
    assert cli.main(["rollout", str(run), "--env", "Pendulum-v1", *words]) == cli.USER_ERROR
    assert message in capsys.readouterr().err
