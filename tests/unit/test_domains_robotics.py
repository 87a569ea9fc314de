"""The task over demonstrations: windows, order, scales, policies, ensembling, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

from robot_data import OFFLINE, Pictures, given, made, opened, picture, tiny  # noqa: E402

from headway.domains.robotics.codec import read_codec, words_of  # noqa: E402
from headway.domains.robotics.policy import Acting, Policy, ensembled, structured  # noqa: E402
from headway.domains.robotics.rollout import Played, play, together, worth  # noqa: E402
from headway.environments import Copies  # noqa: E402
from headway.errors import ConfigError, UserError  # noqa: E402
from headway.models import Act, Observations, build  # noqa: E402
from headway.models.presets import preset  # noqa: E402
from headway.train import WHOLE, Shard  # noqa: E402

close = torch.testing.assert_close
PATCHES = {"model.observation.images.patch": [8, 8]}


def built(task: Any, **settings: Any) -> Act:
    model: Any = build(task.adapt(tiny(**settings).model), 1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model.eval()


def test_a_window_holds_the_actions_from_a_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop over the data; after an episode's end there are none."""
    data = made(count=4)
    given(monkeypatch, data)
    task = opened(tmp_path)
    windows = task._windows("train")
    steps = np.arange(len(data.actions))
    chunks, seen = windows.chunks(steps), windows.seen(steps)
    mean, std = data.states.mean(0), data.states.std(0)
    for step in steps.tolist():
        end = int(data.ends[data.ends > step][0])
        close(seen.states[step].numpy(), (data.states[step] - mean) / std, rtol=1e-4, atol=1e-4)
        for place in range(5):
            assert bool(chunks.keep[step, place]) == (step + place < end)
            if step + place < end:
                said = task.codec.said_actions(chunks.actions[step, place].numpy())
                np.testing.assert_allclose(said, data.actions[step + place], atol=1e-6)


def test_batches_are_a_pure_function_of_seed_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What chance gives to a chunk, too."""
    given(monkeypatch, made(("reach", "left")))
    task = opened(tmp_path)

    def some(start: int, count: int, shard: Shard = WHOLE) -> list[torch.Tensor]:
        batches = [batch for batch, _ in zip(task.batches("train", shard, start), range(count))]
        return [torch.cat([each.seen.states.flatten(), each.drawn.noise.flatten()]) for each in batches]

    whole = some(0, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], some(3, 5)))
    assert all(torch.equal(a, b) for a, b in zip(whole[1::2], some(0, 4, Shard(1, 2))))
    assert not torch.equal(whole[0][-8 * 3 :], whole[1][-8 * 3 :])


def test_states_are_moved_in_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    still, moved = (opened(tmp_path, **OFFLINE, **{"task.noise": noise}) for noise in (0.0, 0.5))
    first, second = (
        torch.cat([b.seen.states for b, _ in zip(task.batches("train"), range(40))]) for task in (still, moved)
    )
    assert float((second - first).std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(*(next(task.batches("validation")).seen.states for task in (still, moved)))


def test_tasks_are_seen_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of four times as many steps has no more than its share, and each of its steps comes once an epoch."""
    one, two = made(("reach",), count=16), made(("left",), count=4, seed=1)
    from headway.data.demonstrations import Demonstrations

    data = Demonstrations(
        np.concatenate([one.states, two.states]),
        np.concatenate([one.actions, two.actions]),
        np.concatenate([one.ends, two.ends + len(one.actions)]),
        {},
        np.concatenate([one.tasks, two.tasks + 1]),
        ("reach", "left"),
        np.concatenate([one.named, two.named]),
        (*one.environments, *two.environments),
        None,
    )
    given(monkeypatch, data)
    task = opened(tmp_path)
    windows = task._windows("train")
    stream = windows.endless(10, 7)
    seen = np.concatenate([next(stream)[1] for _ in range(40)])
    second = seen >= len(one.actions)
    assert second.sum() == 200
    size = len(two.actions)
    assert sorted(seen[second][:size]) == list(range(len(one.actions), len(data.actions)))
    batch = next(task.batches("train"))
    assert batch.seen.words is not None
    assert sorted(task.codec.words) == ["left", "reach"]


def test_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(count=4)
    data.actions[:, 1] = 0.25  # does not move
    given(monkeypatch, data)
    actions = data.actions[:, 0]
    for scaling, shift, scale in (
        ("deviation", actions.mean(), actions.std()),
        ("range", (actions.max() + actions.min()) / 2, np.ptp(actions) / 2),
    ):
        codec = opened(tmp_path, **{"task.scaling": scaling}).codec
        assert codec.shift == pytest.approx([shift, 0.25], rel=1e-5)
        assert codec.scale == pytest.approx([scale, 1.0], rel=1e-5)
        assert codec.said_actions(codec.read_actions(np.array([[0.5, 9.0]]))) == pytest.approx(np.array([[0.5, 9.0]]))
    assert abs(codec.states(np.full((1, 4), 1e9))).max() == 10
    codec.save(tmp_path)
    assert read_codec(tmp_path) == codec


def test_of_a_state_the_first_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(count=4, cameras=("top",)))
    task = opened(tmp_path, **{"task.state": 2, "task.episodes": 0, "task.split.validation": 0.3}, **PATCHES)
    assert (task.codec.recorded, len(task.codec.mean)) == (4, 2)
    assert task.adapt(tiny(**PATCHES).model).observation.states == 2
    blind = opened(tmp_path, **{"task.state": 0, "task.episodes": 0, "task.split.validation": 0.3}, **PATCHES)
    assert next(blind.batches("train")).seen.states is None


@pytest.mark.parametrize(
    ("settings", "cameras"),
    [
        ({}, ()),
        ({"model.head": {"kind": "regression", "latent": 0}}, ()),
        ({"model.head": {"kind": "diffusion", "steps": 10, "sampled": 5}}, ()),
        ({"task.state": 0, **PATCHES, "model.observation.images.stem": "linear"}, ("top", "side")),
    ],
)
def test_one_batch_is_learnt_by_heart(
    settings: dict[str, Any], cameras: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, made(cameras=cameras))
    task = opened(tmp_path, **OFFLINE, **settings)
    model: Any = build(task.adapt(tiny(**settings).model), 1)
    batch = next(task.batches("train"))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    worth = []
    for _ in range(120):
        losses = task.loss(model, batch)
        assert {name: loss.count for name, loss in losses.items()} == task.counts(batch)
        worth.append(float(losses["actions"].total.detach()) / losses["actions"].count)
        optimizer.zero_grad()
        sum((each.total / each.count for each in losses.values()), torch.zeros(())).backward()
        optimizer.step()
    assert worth[-1] < 0.25 * worth[0]


def test_pictures_come_in_the_size_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(cameras=("side", "top"), size=(32, 48))
    given(monkeypatch, data)
    task = opened(tmp_path, **OFFLINE, **PATCHES, **{"task.size": [16, 24]})
    batch = next(task.batches("train"))
    assert [tuple(each.shape) for each in batch.seen.images] == [(8, 3, 16, 24)] * 2
    plain = opened(tmp_path, **OFFLINE, **PATCHES, **{"task.cameras": ["top"]})
    seen = plain._windows("train").seen(np.array([3]))
    assert len(seen.images) == 1
    wanted = (picture(data.states[3], (32, 48)).astype(np.float32) - 127.5) / 64
    np.testing.assert_allclose(seen.images[0][0].permute(1, 2, 0).numpy(), wanted)


def test_ensembling_by_hand() -> None:
    """Zhao et al. 2023, section IV-B: the oldest chunk has the weight 1."""
    said = np.array([[[1.0]], [[2.0]], [[4.0]]])
    weights = [1.0, math.exp(-0.3), math.exp(-0.6)]
    wanted = (1 * weights[0] + 2 * weights[1] + 4 * weights[2]) / sum(weights)
    assert ensembled(said, 0.3)[0, 0] == pytest.approx(wanted)
    assert ensembled(said, 0.0)[0, 0] == pytest.approx(7 / 3)
    assert ensembled(said, None)[0, 0] == 4.0


@pytest.mark.parametrize(("execute", "ensemble"), [(1, 0.5), (1, None), (3, None), (2, 0.5), (5, 0.1)])
def test_an_actor_does_what_its_chunks_say(
    execute: int, ensemble: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain table of all chunks; rows that leave change nothing for the others."""
    given(monkeypatch, made())
    task = opened(tmp_path, **{"task.execute": execute, "task.ensemble": ensemble})
    model = built(task)
    random = np.random.default_rng(0)
    states = [task.codec.states(random.normal(size=(3, 4))) for _ in range(9)]
    acting, table, rows = Acting(model, task.codec, [1, 2, 3]), {}, np.arange(3)
    for step, seen in enumerate(states):
        if step == 6:
            acting.select(np.array([0, 2]))
            rows = np.array([0, 2])
        found = acting.act(lambda now=seen[rows]: Observations(torch.from_numpy(now)))
        if step % execute == 0:
            table[step] = Acting(model, task.codec, [1, 2, 3]).chunk(Observations(torch.from_numpy(seen)))
        live = [table[first][:, step - first] for first in sorted(table) if step - first < 5]
        weights = np.exp(-(ensemble or 0.0) * np.arange(len(live)))
        wanted = live[-1] if ensemble is None else sum(w * x for w, x in zip(weights / weights.sum(), live))
        np.testing.assert_allclose(found, wanted[rows], rtol=1e-4, atol=1e-5)


def test_what_diffusion_draws_is_each_rows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    settings = {"model.head": {"kind": "diffusion", "steps": 10, "sampled": 3}}
    task = opened(tmp_path, **settings)
    model, seen = built(task, **settings), torch.zeros(2, 4)
    both = Acting(model, task.codec, [1, 2]).chunk(Observations(seen))
    alone = Acting(model, task.codec, [2]).chunk(Observations(seen[:1]))
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_a_policy_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(cameras=("top",)))
    settings = {"task.episodes": 0, "task.split.validation": 0.3, **PATCHES}
    task = opened(tmp_path, **settings)
    policy = Policy(built(task, **settings), task.codec)
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
    found = structured(parts)
    assert (found["state"].tolist(), list(found["cameras"])) == (state.tolist(), ["image"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "has no state, and this policy reads 4 numbers"),
        ({"state": [1, 2, 3]}, "a state of 3 numbers for a policy that knows 4"),
        ({"state": [1, 2, np.nan, 4]}, "the state holds nan"),
        ({"cameras": {}}, r"no picture of the camera 'top' \(its cameras: none\)"),
        ({"cameras": {"top": np.zeros((24, 24, 3))}}, r"is float64 of shape \(24, 24, 3\); give uint8"),
        ({"cameras": {"top": np.zeros((24, 24), np.uint8)}}, r"uint8 of shape \(24, 24\)"),
        ({"task": None}, "names no task, and this policy knows several; add task, one of 'reach', 'left'"),
        ({"task": "swim"}, "the task 'swim' has no word that this policy knows"),
    ],
)
def test_observations_that_do_not_fit(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, made(("reach", "left"), cameras=("top",)))
    settings = {"task.episodes": 0, "task.split.validation": 0.3, **PATCHES}
    task = opened(tmp_path, **settings)
    policy = Policy(built(task, **settings), task.codec)
    sound = {"state": np.zeros(4), "cameras": {"top": np.zeros((24, 24, 3), np.uint8)}, "task": "reach"}
    assert policy.select_action(sound).shape == (2,)
    with pytest.raises(UserError, match=message):
        policy.select_action({**sound, **change})


def test_the_words_of_a_task_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(("reach it", "to the left")))
    task = opened(tmp_path)
    policy = Policy(built(task), task.codec)
    chunks = [policy.predict_action_chunk({"state": np.zeros(4), "task": name}) for name in task.codec.names]
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3
    assert words_of("Pick_up the-CUBE!") == ["pick", "up", "the", "cube", "!"]
    assert task.codec.text("reach the unknown") == [3, 4, 0]
    assert opened(tmp_path, **{"task.text": False}).codec.symbols == 0


def expert(codec: Any) -> Any:
    """In the place of a model: it moves straight to the goal."""

    class Straight:
        config = type("", (), {"chunk": 5})

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def draw(self, random: Any, rows: int) -> Any:
            from headway.models import Drawn

            return Drawn(torch.zeros(rows, 0))

        def __call__(self, seen: Observations, drawn: Any) -> torch.Tensor:
            places = seen.states.numpy() * np.array(codec.std) + np.array(codec.mean)
            action = np.clip(5 * (places[:, 2:] - places[:, :2]), -1, 1)
            said = codec.read_actions(action)
            return torch.from_numpy(said)[:, None].expand(-1, 5, -1)

        training = False

        def eval(self) -> None: ...
        def train(self, mode: bool) -> None: ...

    return Straight()


def test_an_expert_succeeds_and_its_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side as alone; the film sees every step of the first episode."""
    given(monkeypatch, made(("reach", "left")))
    codec = opened(tmp_path, **{"task.ensemble": None}).codec
    frames: list[np.ndarray] = []
    with Copies(codec.environments[0], 3, drawn=True) as copies:
        played = play(expert(codec), codec, copies, "reach", range(7), lambda draw: frames.append(draw()))
        one = play(expert(codec), codec, copies, "reach", [4])
    assert played.succeeded is not None
    assert played.succeeded.min() > 0
    assert one.succeeded is not None
    assert one.succeeded[0] == played.succeeded[4]
    assert len(frames) == played.lengths[0] == played.succeeded[0]
    assert played.returns.tolist() == [-float(length) for length in played.lengths]
    with Copies(codec.environments[1], 3) as copies:  # where the same actions lead away
        lost = worth(play(expert(codec), codec, copies, "left", range(6)), 30)
    assert lost["success_rate"] < 0.5
    found = worth(played, 30)
    assert (found["success_rate"], found["samples"]) == (1.0, 7)
    assert found["success_rate_interval"][0] == pytest.approx(0.6457, abs=1e-3)
    both = together([found, lost])
    assert both["samples"] == 13
    assert both["success_rate"] == pytest.approx((7 + 6 * lost["success_rate"]) / 13)
    silent = worth(Played(None, np.array([3, 4]), np.array([1.0, 2.0])), 30)
    assert (silent["return_mean"], silent["samples"]) == (1.5, 2)


def test_cameras_are_looked_at_where_a_chunk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Seen(Copies):
        def __init__(self, name: str, count: int, *, drawn: bool = False, cameras: Any = (), size: Any = ()) -> None:
            assert (list(cameras), size) == (["top"], (24, 24))
            super().__init__(name, count, drawn=drawn)

        def pictures(self, row: int) -> dict[str, np.ndarray]:
            looked.append(row)
            return {"top": picture(self._each[row].unwrapped.places, (24, 24))}

    monkeypatch.setattr(import_module("headway.domains.robotics.rollout"), "Copies", Seen)
    given(monkeypatch, made(cameras=("top",)))
    settings = {"task.state": 0, "task.execute": 5, "task.ensemble": None, **PATCHES}
    task = opened(tmp_path, **settings)
    scores = task.evaluate(built(task, **settings), "validation", 2)
    assert scores["samples"] == 2
    assert len(looked) == 2 * 30 / 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.execute": 6}, "task.execute is 6, and a chunk has 5 actions"),
        ({"task.execute": 0}, "to the last two 1 or more"),
        ({"task.ensemble": -1.0}, "task.ensemble is -1.0"),
        ({"task.noise": -0.1}, "task.noise is -0.1"),
        ({"task.size": [0, 3]}, r"task.size is \(0, 3\)"),
        ({"task.state": 5}, "task.state is 5, and states have 4 numbers"),
        ({"task.cameras": ["tip"]}, "no camera 'tip'; did you mean 'top'"),
        ({"task.state": 0, "task.cameras": []}, "neither states nor cameras are read"),
        ({"task.env": "mine:Env"}, "code of its own, which no file may ask for"),
        ({"task.split.validation": 0.0, "task.episodes": 0}, "the validation split of 10 demonstrations is empty"),
        ({"model.observation.images.patch": [16, 16]}, "images of 24 x 24 are not whole 16 x 16 patches"),
    ],
)
def test_tasks_that_cannot_be(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, made(cameras=("top",)))
    with pytest.raises((ConfigError, UserError), match=message):
        opened(tmp_path, **{**OFFLINE, **PATCHES, **settings}).adapt(tiny(**{**PATCHES, **settings}).model)


def test_demonstrations_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of files, too: nothing is trained, and nothing is left behind."""
    data = made()
    arrays = {"states": data.states, "actions": data.actions, "rewards": np.zeros(len(data.states)), "ends": data.ends}
    spoilt = data.states.copy()
    spoilt[int(data.ends[1]) + 3, 1] = np.nan
    for change, message in (
        ({"states": spoilt}, "episode 2, step 3: states hold nan"),
        ({"ends": np.insert(data.ends, 1, data.ends[0])}, "episode 1 has 0 steps"),
        ({"actions": data.actions[:-1]}, "give one of each a step"),
        ({"actions": np.zeros(len(data.states), int)}, "choices, and a robot's are numbers"),
    ):
        np.savez(tmp_path / "any.npz", **{**arrays, **change})
        with pytest.raises(UserError, match=message):
            opened(tmp_path)
    given(monkeypatch, replace(data, actions=data.actions[:, :0]))
    with pytest.raises(UserError, match="actions of 0 numbers"):
        opened(tmp_path)
    given(monkeypatch, replace(data, names=("",)))
    with pytest.raises(UserError, match="a task has no name"):
        opened(tmp_path, **{"task.text": True})


def test_environments_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (
        ("CartPole-v1", "takes actions of 2 choices, and this policy says 2 numbers"),
        ("Pendulum-v1", "takes actions of 1 numbers"),
        ("HeadwayReech-v0", "did you mean 'HeadwayReach-v0'"),
    ):
        given(monkeypatch, replace(made(), environments=(name,)))
        with pytest.raises(UserError, match=f"{message}.*or set task.episodes=0"):
            opened(tmp_path)
    wider = made()
    given(monkeypatch, replace(wider, states=np.hstack([wider.states, wider.states])))
    with pytest.raises(UserError, match="shows states of 4 numbers, and this policy knows 8"):
        opened(tmp_path)


def test_code_that_data_name_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given(monkeypatch, replace(made(), environments=("os:abort",)))
    task = opened(tmp_path, **{"task.split.validation": 0.3})
    assert (task.goal, task.codec.environments) == ("loss", ("",))
    assert "HEADWAY_ENV=os:abort" in caplog.text
    monkeypatch.setenv("HEADWAY_ENV", "robot_data:Reach")
    assert opened(tmp_path).codec.environments == ("robot_data:Reach",)


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    with pytest.raises(ConfigError, match="needs a model of chunks of actions"):
        replace(tiny(), model=preset("gpt-1m")).task.open(replace(tiny(), model=preset("gpt-1m")), [], tmp_path)


def test_frames_are_read_at_any_steps() -> None:
    frames = Pictures(made().states, (24, 24))
    assert (frames.read(np.array([5, 1])) == np.stack([frames.read(np.array([n]))[0] for n in (5, 1)])).all()
