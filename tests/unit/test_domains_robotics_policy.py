"""Policies over demonstrations: ensembling, actors, single steps, what is refused, and rollouts."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

from robot_data import PATCHES, built, given, made, opened, picture  # noqa: E402

from headway.domains.robotics.policy import (  # noqa: E402
    PolicyRunner,
    RobotController,
    combine_scores,
    ensemble_chunks,
    play,
    structure_observation,
    success_scores,
)
from headway.domains.robotics.robot_codec import words_of  # noqa: E402
from headway.environments.rollouts import PlayedEpisodes  # noqa: E402
from headway.environments.vector_env import VectorEnv  # noqa: E402
from headway.errors import UserError  # noqa: E402
from headway.learn.report.pictures import FrameSampler  # noqa: E402
from headway.nn.models import Observations  # noqa: E402


def test_ensembling_by_hand() -> None:
    """Zhao et al. 2023, section IV-B: the oldest chunk has the weight 1."""
    said = np.array([[[1.0]], [[2.0]], [[4.0]]])
    weights = [1.0, math.exp(-0.3), math.exp(-0.6)]
    wanted = (1 * weights[0] + 2 * weights[1] + 4 * weights[2]) / sum(weights)
    assert ensemble_chunks(said, 0.3)[0, 0] == pytest.approx(wanted)
    assert ensemble_chunks(said, 0.0)[0, 0] == pytest.approx(7 / 3)
    assert ensemble_chunks(said, None)[0, 0] == 4.0


@pytest.mark.parametrize(("execute", "ensemble"), [(1, 0.5), (1, None), (3, None), (2, 0.5), (5, 0.1)])
def test_an_actor_does_what_its_chunks_say(
    execute: int, ensemble: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain table of all chunks; rows that leave change nothing for the others."""
    given(monkeypatch, made())
    task = opened(tmp_path, **{"task.execute": execute, "task.ensemble": ensemble})
    model = built(task)
    random = np.random.default_rng(0)
    states = [task.examples.codec.states(random.normal(size=(3, 4))) for _ in range(9)]
    acting, table, rows = PolicyRunner(model, task.examples.codec, [1, 2, 3]), {}, np.arange(3)
    for step, seen in enumerate(states):
        if step == 6:
            acting.keep_rows(np.array([0, 2]))
            rows = np.array([0, 2])
        found = acting.act(lambda now=seen[rows]: Observations(torch.from_numpy(now)))
        if step % execute == 0:
            table[step] = PolicyRunner(model, task.examples.codec, [1, 2, 3]).chunk(
                Observations(torch.from_numpy(seen))
            )
        live = [table[first][:, step - first] for first in sorted(table) if step - first < 5]
        weights = np.exp(-(ensemble or 0.0) * np.arange(len(live)))
        wanted = live[-1] if ensemble is None else sum(w * x for w, x in zip(weights / weights.sum(), live))
        np.testing.assert_allclose(found, wanted[rows], rtol=1e-4, atol=1e-5)


def test_what_diffusion_draws_is_each_rows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    settings = {"model.head": {"kind": "diffusion", "steps": 10, "sampled": 3}}
    task = opened(tmp_path, **settings)
    model, seen = built(task, **settings), torch.zeros(2, 4)
    both = PolicyRunner(model, task.examples.codec, [1, 2]).chunk(Observations(seen))
    alone = PolicyRunner(model, task.examples.codec, [2]).chunk(Observations(seen[:1]))
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_a_policy_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(cameras=("top",)))
    settings = {"task.episodes": 0, "task.split.validation": 0.3, **PATCHES}
    task = opened(tmp_path, **settings)
    policy = RobotController(built(task, **settings), task.examples.codec)
    image, state = picture(np.zeros(4), (24, 24)), np.arange(4) / 4
    one = {"state": state, "cameras": {"top": image}}
    flat = {"observation.state": state, "observation.images.top": image, "task": "reach"}
    chunk = policy.predict_action_chunk(one)
    assert chunk.shape == (5, 2)
    np.testing.assert_array_equal(policy.predict_action_chunk(flat), chunk)
    first = policy.select_action(one)
    np.testing.assert_allclose(first, chunk[0], atol=1e-6)
    policy.select_action({**one, "state": -state})
    policy.reset()
    np.testing.assert_array_equal(policy.select_action(flat), first)
    parts = {"observation.state": state[:1], "observation.environment_state": state[1:], "observation.image": image}
    found = structure_observation(parts)
    assert (found["state"].tolist(), list(found["cameras"])) == (state.tolist(), ["image"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "has no state, but this policy takes 4 numbers"),
        ({"state": [1, 2, 3]}, "the state has 3 numbers, but this policy takes 4"),
        ({"state": [1, 2, np.nan, 4]}, "the state contains nan"),
        ({"cameras": {}}, r"no image from camera 'top' \(its cameras: none\)"),
        ({"cameras": {"top": np.zeros((24, 24, 3))}}, r"is float64 of shape \(24, 24, 3\); pass uint8"),
        ({"cameras": {"top": np.zeros((24, 24), np.uint8)}}, r"uint8 of shape \(24, 24\)"),
        ({"task": None}, "has no task, but this policy has several; add task with one of 'reach', 'left'"),
        ({"task": "swim"}, "the task 'swim' has no word that this policy knows"),
    ],
)
def test_observations_that_do_not_fit(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, made(("reach", "left"), cameras=("top",)))
    settings = {"task.episodes": 0, "task.split.validation": 0.3, **PATCHES}
    task = opened(tmp_path, **settings)
    policy = RobotController(built(task, **settings), task.examples.codec)
    sound = {"state": np.zeros(4), "cameras": {"top": np.zeros((24, 24, 3), np.uint8)}, "task": "reach"}
    assert policy.select_action(sound).shape == (2,)
    with pytest.raises(UserError, match=message):
        policy.select_action({**sound, **change})


def test_the_words_of_a_task_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(("reach it", "to the left")))
    task = opened(tmp_path)
    policy = RobotController(built(task), task.examples.codec)
    chunks = [policy.predict_action_chunk({"state": np.zeros(4), "task": name}) for name in task.examples.codec.names]
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3
    assert words_of("Pick_up the-CUBE!") == ["pick", "up", "the", "cube", "!"]
    assert task.examples.codec.word_ids("reach the unknown") == [3, 4, 0]
    assert opened(tmp_path, **{"task.text": False}).examples.codec.vocab_size == 0


def expert(codec: Any) -> Any:
    """In the place of a model: it moves straight to the goal."""

    class Straight(torch.nn.Module):
        config = type("", (), {"chunk": 5, "history": 1})

        def parameters(self, recurse: bool = True) -> Any:
            return iter([torch.zeros(1)])

        def sample_noise(self, random: Any, rows: int) -> Any:
            from headway.nn.models import ChunkNoise

            return ChunkNoise(torch.zeros(rows, 0))

        def __call__(self, seen: Observations, drawn: Any) -> torch.Tensor:
            places = seen.states.numpy() * np.array(codec.std) + np.array(codec.mean)
            action = np.clip(5 * (places[:, 2:] - places[:, :2]), -1, 1)
            said = codec.encode_actions(action)
            return torch.from_numpy(said)[:, None].expand(-1, 5, -1)

    return Straight()


def test_an_expert_succeeds_and_its_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side as alone; the film sees every step of the first episode."""
    given(monkeypatch, made(("reach", "left")))
    codec = opened(tmp_path, **{"task.ensemble": None}).examples.codec
    reel = FrameSampler(max_frames=1000)
    with VectorEnv(codec.environments[0], 3, render=True) as copies:
        played = play(expert(codec), codec, copies, "reach", range(7), reel)
        one = play(expert(codec), codec, copies, "reach", [4])
    assert played.succeeded is not None
    assert played.succeeded.min() > 0
    assert one.succeeded is not None
    assert one.succeeded[0] == played.succeeded[4]
    assert len(reel.frames) == played.lengths[0] == played.succeeded[0]
    assert played.returns.tolist() == [-float(length) for length in played.lengths]
    with VectorEnv(codec.environments[1], 3) as copies:  # where the same actions lead away
        lost = success_scores(play(expert(codec), codec, copies, "left", range(6)), 30)
    assert lost["success_rate"] < 0.5
    found = success_scores(played, 30)
    assert (found["success_rate"], found["samples"]) == (1.0, 7)
    assert found["success_rate_interval"][0] == pytest.approx(0.6457, abs=1e-3)
    both = combine_scores([found, lost], [played, played])
    assert both["samples"] == 13
    assert both["success_rate"] == pytest.approx((7 + 6 * lost["success_rate"]) / 13)
    untold = PlayedEpisodes(np.array([1.0, 2.0]), np.array([3, 4]))
    silent = success_scores(untold, 30)
    assert (silent["return_mean"], silent["samples"]) == (1.5, 2)
    mixed = combine_scores([found, silent], [played, untold])
    assert mixed["return_mean"] == pytest.approx((played.returns.sum() + 3) / 9)
    low, high = mixed["return_mean_interval"]
    assert low < mixed["return_mean"] < high
    assert (mixed["samples"], mixed["length_mean"]) == (9, pytest.approx((played.lengths.sum() + 7) / 9))


@pytest.mark.parametrize(("episodes", "succeeded"), [(range(4), [1, 0, 0, 0]), (range(1, 4), None)])
def test_who_ends_without_a_word_has_not_succeeded(
    episodes: range, succeeded: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The episode of seed 0 says so as it ends; the others are cut off by their limit, untold."""
    given(monkeypatch, made())
    codec = opened(tmp_path).examples.codec

    class Telling(VectorEnv):
        def reset(self, row: int, seed: int) -> Any:
            self.ends = {**getattr(self, "ends", {}), row: seed == 0}
            return super().reset(row, seed)

        def step(self, row: int, action: Any) -> Any:
            return super().step(row, action)._replace(success=True if self.ends[row] else None)

    with Telling(codec.environments[0], 2) as copies:
        played = play(expert(codec), codec, copies, "reach", episodes)
    assert (None if played.succeeded is None else played.succeeded.tolist()) == succeeded


def test_any_success_is_better_than_returns_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    task = opened(tmp_path)
    told = task.objective.score({"success_rate": 0.0, "steps_mean": 30.0, "samples": 4})
    poor, rich = (task.objective.score({"return_mean": value}) for value in (-500.0, 4000.0))
    assert poor < rich < told


def test_cameras_are_looked_at_where_a_chunk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Seen(VectorEnv):
        def __init__(self, name: str, count: int, *, render: bool = False, cameras: Any = (), size: Any = ()) -> None:
            assert (list(cameras), size) == (["top"], (24, 24))
            super().__init__(name, count, render=render)

        def images(self, row: int) -> dict[str, np.ndarray]:
            looked.append(row)
            return {"top": picture(self._environments[row].unwrapped.places, (24, 24))}

    monkeypatch.setattr(import_module("headway.domains.robotics.policy"), "VectorEnv", Seen)
    given(monkeypatch, made(cameras=("top",)))
    settings = {"task.state": 0, "task.execute": 5, "task.ensemble": None, **PATCHES}
    task = opened(tmp_path, **settings)
    scores = task.evaluate(built(task, **settings), "validation", 2)
    assert scores["samples"] == 2
    assert len(looked) == 2 * 30 / 5
