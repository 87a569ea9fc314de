"""The task over demonstrations: windows, order, scales, what is learnt, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

from robot_data import OFFLINE, PATCHES, Pictures, built, given, made, opened, picture, tiny  # noqa: E402

from headway.domains.robotics.robot_codec import RobotCodec  # noqa: E402
from headway.errors import ConfigError, UserError  # noqa: E402
from headway.learn import FULL_SHARD, Shard  # noqa: E402
from headway.learn.examples import RngKey  # noqa: E402
from headway.nn.models import build  # noqa: E402
from headway.nn.models.presets import preset  # noqa: E402

close = torch.testing.assert_close


def test_a_window_holds_the_actions_from_a_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop over the data; after an episode's end there are none."""
    data = made(count=4)
    given(monkeypatch, data)
    task = opened(tmp_path, **{"task.noise": 0.0})
    steps = np.arange(len(data.actions))
    batch = task.examples.of("train").take(steps, RngKey(0, steps))
    (seen, _), chunks = batch.inputs, batch.targets
    assert (batch.tokens, batch.computed) == (int(chunks.mask.sum()), 5 * len(steps))
    mean, std = data.states.mean(0), data.states.std(0)
    for step in steps.tolist():
        end = int(data.ends[data.ends > step][0])
        close(seen.states[step].numpy(), (data.states[step] - mean) / std, rtol=1e-4, atol=1e-4)
        for place in range(5):
            assert bool(chunks.mask[step, place]) == (step + place < end)
            if step + place < end:
                said = task.examples.codec.decode_actions(chunks.actions[step, place].numpy())
                np.testing.assert_allclose(said, data.actions[step + place], atol=1e-6)


def test_batches_are_a_pure_function_of_seed_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What chance gives to a chunk, too."""
    given(monkeypatch, made(("reach", "left")))
    task = opened(tmp_path)

    def some(start: int, count: int, shard: Shard = FULL_SHARD) -> list[torch.Tensor]:
        batches = [batch for batch, _ in zip(task.batches("train", shard, start), range(count))]
        return [torch.cat([each.inputs[0].states.flatten(), each.inputs[1].noise.flatten()]) for each in batches]

    whole = some(0, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], some(3, 5)))
    assert all(torch.equal(a, b) for a, b in zip(whole[1::2], some(0, 4, Shard(1, 2))))
    assert not torch.equal(whole[0][-8 * 3 :], whole[1][-8 * 3 :])


def test_states_are_moved_in_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    still, moved = (opened(tmp_path, **OFFLINE, **{"task.noise": noise}) for noise in (0.0, 0.5))
    first, second = (
        torch.cat([b.inputs[0].states for b, _ in zip(task.batches("train"), range(40))]) for task in (still, moved)
    )
    assert float((second - first).std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(*(next(task.batches("validation")).inputs[0].states for task in (still, moved)))


def test_tasks_are_seen_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of four times as many steps has no more than its share, and each of its steps comes once an epoch."""
    one, two = made(("reach",), count=16), made(("left",), count=4, seed=1)
    from headway.data.episodes import concatenate_episodes

    data = concatenate_episodes([one, two], ["one", "two"], one_environment=False)
    given(monkeypatch, data)
    task = opened(tmp_path)
    stream = task.examples.of("train").training_order()._replace(size=10, seed=7).endless(FULL_SHARD, 0)
    seen = np.concatenate([next(stream)[1] for _ in range(40)])
    second = seen >= len(one.actions)
    assert second.sum() == 200
    size = len(two.actions)
    assert sorted(seen[second][:size]) == list(range(len(one.actions), len(data.actions)))
    batch = next(task.batches("train"))
    assert batch.inputs[0].words is not None
    assert sorted(task.examples.codec.words) == ["left", "reach"]


def test_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(count=4)
    data.actions[:, 1] = 0.25  # does not move
    given(monkeypatch, data)
    actions = data.actions[:, 0]
    for scaling, shift, scale in (
        ("deviation", actions.mean(), actions.std()),
        ("range", (actions.max() + actions.min()) / 2, np.ptp(actions) / 2),
    ):
        codec = opened(tmp_path, **{"task.scaling": scaling}).examples.codec
        assert codec.shift == pytest.approx([shift, 0.25], rel=1e-5)
        assert codec.scale == pytest.approx([scale, 1.0], rel=1e-5)
        assert codec.decode_actions(codec.encode_actions(np.array([[0.5, 9.0]]))) == pytest.approx(
            np.array([[0.5, 9.0]])
        )
    assert abs(codec.states(np.full((1, 4), 1e9))).max() == 10
    codec.save(tmp_path)
    assert RobotCodec.read(tmp_path) == codec


def test_of_a_state_the_first_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made(count=4, cameras=("top",)))
    task = opened(tmp_path, **{"task.state": 2, "task.episodes": 0, "task.split.validation": 0.3}, **PATCHES)
    assert (task.examples.codec.recorded, len(task.examples.codec.mean)) == (4, 2)
    assert task.adapt(tiny(**PATCHES).model).observation.states == 2
    blind = opened(tmp_path, **{"task.state": 0, "task.episodes": 0, "task.split.validation": 0.3}, **PATCHES)
    assert next(blind.batches("train")).inputs[0].states is None


@pytest.mark.parametrize(
    ("settings", "cameras"),
    [
        ({}, ()),
        ({"model.head": {"kind": "regression", "latent": 0}}, ()),
        ({"model.head": {"kind": "diffusion", "steps": 10, "sampled": 5}}, ()),
        ({"task.state": 0, **PATCHES, "model.observation.images.stem": "linear"}, ("top", "side")),
        ({"task.state": 2, "model.observation.images": "keypoints"}, ("top", "side")),
        ({"task.state": 2, "model.observation.images": "keypoints", "model.state_loss": 1.0}, ("top", "side")),
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
        assert {name: loss.count for name, loss in losses.items()} == task.objective.counts(batch)
        worth.append(float(losses["actions"].total.detach()) / losses["actions"].count)
        optimizer.zero_grad()
        sum((each.total / each.count for each in losses.values()), torch.zeros(())).backward()
        optimizer.step()
    assert worth[-1] < 0.25 * worth[0]


def test_state_values_that_the_policy_does_not_take_are_a_second_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training alone; in evaluation they are unknown."""
    data = made(count=10, cameras=("top",))
    given(monkeypatch, data)
    settings = {"task.state": 2, "task.episodes": 0, "task.split.validation": 0.3, "task.split.test": 0.0}
    settings |= {"model.observation.images": "keypoints", "model.head.latent": 0}
    batches, totals = [], []
    for weight in (0.0, 2.0):
        task = opened(tmp_path, **settings, **{"model.state_loss": weight})
        model = built(task, **settings, **{"model.state_loss": weight})
        batches.append(next(task.batches("train")).inputs[0])
        assert next(task.batches("validation")).inputs[0].unseen is None
        totals.append(task.loss(model, next(task.batches("train")))["actions"])
    assert batches[0].unseen is None
    training = data.states[np.isin(np.repeat(np.arange(10), data.lengths), task.examples.splits.rows("train")), 2:]
    scaled = (data.states[[0, 5], 2:] - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(task.examples.unseen(np.array([0, 5])), scaled, rtol=1e-4, atol=1e-5)
    _, terms = model.encode(batches[1])
    assert set(terms) == {"unseen"}
    assert model.encode(batches[1]._replace(unseen=None))[1] == {}
    assert float(terms["unseen"].detach()) > 0
    assert totals[1].count == totals[0].count


def test_half_of_the_windows_start_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others at any step, each equally often."""
    data = made()
    given(monkeypatch, data)
    order = opened(tmp_path, **OFFLINE, **{"task.starts": 2}).examples.of("train").training_order()
    steps = np.concatenate([steps for (_, steps), _ in zip(order.endless(FULL_SHARD, 0), range(50))])
    early = np.concatenate([start + np.arange(2) for start in data.starts])
    is_early = np.isin(steps, early)
    assert is_early[1::2].all()
    assert 0 < is_early[::2].mean() < 0.3
    _, counts = np.unique(steps[1::2], return_counts=True)
    assert counts.max() - counts.min() <= 1


def test_pictures_come_in_the_size_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(cameras=("side", "top"), size=(32, 48))
    given(monkeypatch, data)
    task = opened(tmp_path, **OFFLINE, **PATCHES, **{"task.size": [16, 24]})
    batch = next(task.batches("train"))
    assert [tuple(each.shape) for each in batch.inputs[0].images] == [(8, 3, 16, 24)] * 2
    plain = opened(tmp_path, **OFFLINE, **PATCHES, **{"task.cameras": ["top"]})
    seen = plain.examples.observations(np.array([3]))
    assert len(seen.images) == 1
    wanted = (picture(data.states[3], (32, 48)).astype(np.float32) - 127.5) / 64
    np.testing.assert_allclose(seen.images[0][0].permute(1, 2, 0).numpy(), wanted)


def test_simulators_draw_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what it was scaled to: a camera of another shape sees other things."""
    data = made(cameras=("top",))
    given(monkeypatch, replace(data, cameras={"top": Pictures(data.states, (16, 16), recorded_size=(32, 48))}))
    (camera,) = opened(tmp_path, **OFFLINE, **PATCHES, **{"task.size": [16, 16]}).examples.codec.cameras
    assert (camera.recorded, camera.read) == ((32, 48), (16, 16))


def test_the_limit_of_held_out_windows_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    task = opened(tmp_path, **OFFLINE)
    whole, some = (task.evaluate(built(task), "validation", limit)["samples"] for limit in (None, 2))
    assert some <= 2 * 5 < whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.execute": 6}, "task.execute is 6, but a chunk has 5 actions"),
        ({"task.execute": 0}, "and the others at least 1"),
        ({"task.ensemble": -1.0}, "task.ensemble is -1.0"),
        ({"task.noise": -0.1}, "task.noise is -0.1"),
        ({"task.starts": -1}, "task.starts is -1"),
        ({"task.size": [0, 3]}, r"task.size is \(0, 3\)"),
        ({"task.state": 5}, "task.state is 5, but states have 4 numbers"),
        ({"task.cameras": ["tip"]}, "no camera 'tip'; did you mean 'top'"),
        ({"task.state": 0, "task.cameras": []}, "no inputs, neither states nor cameras"),
        ({"task.env": "mine:Env"}, "'mine:Env', which would run its own code"),
        ({"task.split.validation": 0.0, "task.episodes": 0}, "the validation split of 10 demonstrations is empty"),
        ({"model.observation.images.patch": [16, 16]}, "images of 24 x 24 do not split into 16 x 16 patches"),
        ({"model.state_loss": 1.0}, "model.state_loss needs state values to predict, but the policy takes all 4"),
        ({"model.observation.images": "frames"}, "FramesEmbedConfig does not embed images; choose from: patches, key"),
        ({"model.observation.images": {"kind": "keypoints", "points": 0}}, "points=0, features=32"),
        ({"model.observation.images": {"kind": "keypoints", "sharpness": 0.0}}, r"sharpness is 0\.0"),
        ({"model.observation.images": {"kind": "keypoints", "features": 3}}, "features=3, which is not a multiple"),
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
        ({"states": spoilt}, "episode 2, step 3: states contain nan"),
        ({"ends": np.insert(data.ends, 1, data.ends[0])}, "episode 1 has 0 steps"),
        ({"actions": data.actions[:-1]}, "save one of each per step"),
        ({"actions": np.zeros(len(data.states), int)}, "discrete actions, but robots need real-valued ones"),
    ):
        np.savez(tmp_path / "any.npz", **{**arrays, **change})
        with pytest.raises(UserError, match=message):
            opened(tmp_path)
    given(monkeypatch, replace(data, actions=data.actions[:, :0]))
    with pytest.raises(UserError, match="actions in the demonstrations have 0 numbers"):
        opened(tmp_path)
    given(monkeypatch, replace(data, task_names=("",)))
    with pytest.raises(UserError, match="a task has no name"):
        opened(tmp_path, **{"task.text": True})


def test_a_few_demonstrations_judge_a_policy_that_plays_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever side of a split they would stand on; training needs some on both."""
    given(monkeypatch, made())
    task = opened(tmp_path, **OFFLINE)
    task.save(tmp_path)
    model, one = built(task), made(count=1)
    given(monkeypatch, one)
    for share, message in ((0.99, "the train split of 1 demonstrations"), (0.0, "the validation split of 1.*task.env")):
        few = opened(tmp_path, **OFFLINE, **{"task.split": {"validation": share, "test": 0.0}})
        assert few.evaluate(model, "all")["samples"] >= len(one.actions)
        with pytest.raises(UserError, match=message):
            few.adapt(tiny().model)


def test_environments_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (
        ("CartPole-v1", "takes actions of 2 choices, but this policy outputs 2 numbers"),
        ("Pendulum-v1", "takes actions of 1 number"),
        ("HeadwayReech-v0", "did you mean 'HeadwayReach-v0'"),
    ):
        given(monkeypatch, replace(made(), environments=(name,)))
        with pytest.raises(UserError, match=f"{message}.*or set task.episodes=0"):
            opened(tmp_path)
    wider = made()
    given(monkeypatch, replace(wider, states=np.hstack([wider.states, wider.states])))
    with pytest.raises(UserError, match="has states of 4 numbers, but this policy takes 8"):
        opened(tmp_path)


def test_code_that_data_name_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given(monkeypatch, replace(made(), environments=("os:abort",)))
    task = opened(tmp_path, **{"task.split.validation": 0.3})
    assert (task.goal, task.examples.codec.environments) == ("loss", ("",))
    assert "HEADWAY_ENV=os:abort" in caplog.text
    monkeypatch.setenv("HEADWAY_ENV", "robot_data:Reach")
    assert opened(tmp_path).examples.codec.environments == ("robot_data:Reach",)


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, made())
    with pytest.raises(ConfigError, match="needs a model that predicts action chunks"):
        replace(tiny(), model=preset("gpt-1m")).task.open(replace(tiny(), model=preset("gpt-1m")), [], tmp_path)


def test_frames_are_read_at_any_steps() -> None:
    frames = Pictures(made().states, (24, 24))
    assert (frames.read(np.array([5, 1])) == np.stack([frames.read(np.array([n]))[0] for n in (5, 1)])).all()
