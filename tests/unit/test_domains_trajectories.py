"""The task over episodes: windows, losses, order, splits, scales, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import stirred
from torch import nn
from trajectory_data import SETTINGS, made, opened, saved, tiny

from headway.app.recipes import configure_recipe
from headway.data.episode_files import write_episodes
from headway.domains.trajectories.task import Point, return_effect
from headway.domains.trajectories.trajectory_player import Actor, TrajectoryCodec, play
from headway.environments.recording import Mixture, Recorder
from headway.environments.rollouts import SeparateRows
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.learn import FULL_SHARD, Shard
from headway.learn.examples import RngKey
from headway.learn.recipe import open_task
from headway.nn.models import PatchesConfig, TrajectoryInputs, Transformer, build
from headway.nn.models.presets import preset

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
OFFLINE = {"task.episodes": 0}


def built(task: Any, **settings: Any) -> Transformer:
    return stirred(task, tiny(**settings), 0.2)


def test_a_window_holds_the_steps_that_an_agent_sees(tmp_path: Path) -> None:
    """Against a plain loop over the data."""
    task = opened(saved(tmp_path), tmp_path, **OFFLINE)
    episodes, codec = task.examples.episodes, task.examples.codec
    windows = task.examples.of("train")
    batch = windows.take(np.arange(windows.training_order().samples), RngKey(0, np.arange(1)))
    (inputs, layout), (actions, following) = batch.inputs, batch.targets
    assert (inputs.actions is actions, following) == (True, None)
    to_go, row = episodes.returns_to_go(), 0
    for number in task.examples.splits.indices["train"]:
        start, end = int(episodes.starts[number]), int(episodes.ends[number])
        for last in range(start, end):
            first = max(start, last - 3)
            count = last - first + 1
            assert layout.positions[row].tolist() == [-1] * (4 - count) + list(range(count))
            for place, step in zip(range(4 - count, 4), range(first, last + 1)):
                assert inputs.timesteps[row, place] == step - start
                assert inputs.actions[row, place] == episodes.actions[step]
                assert inputs.returns[row, place] == pytest.approx(to_go[step] / codec.scale, rel=1e-6)
                wanted = (episodes.states[step] - np.array(codec.mean)) / np.array(codec.std)
                np.testing.assert_allclose(inputs.states[row, place], wanted, rtol=1e-4, atol=1e-5)
            row += 1
    assert row == windows.training_order().samples
    assert sum(batch.tokens for batch in task.batches("all")) == len(episodes.rewards)  # each step, once


def test_batches_are_a_pure_function_of_seed_and_number(tmp_path: Path) -> None:
    task = opened(saved(tmp_path), tmp_path, **OFFLINE)

    def some(start: int, count: int, shard: Shard = FULL_SHARD) -> list[torch.Tensor]:
        stream = task.batches("train", shard, start)
        return [next(stream).inputs[0].states for _ in range(count)]

    whole = some(0, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], some(3, 5)))
    assert all(torch.equal(a, b) for a, b in zip(whole[1::2], some(0, 4, Shard(1, 2))))
    other = opened(saved(tmp_path, "b.npz"), tmp_path, **OFFLINE, **{"train.seed": 5})
    assert not torch.equal(next(other.batches("train")).inputs[0].states, whole[0])


def test_equal_episodes_are_never_on_two_sides(tmp_path: Path) -> None:
    from headway.data.episodes import concatenate_episodes

    twice = concatenate_episodes([made(), made()], ["a", "b"])
    write_episodes(tmp_path / "a.npz", twice)
    task = opened(tmp_path / "a.npz", tmp_path, **OFFLINE)
    keys = task.examples.episodes.keys()
    sides = [
        {keys[number] for number in task.examples.splits.indices[side]} for side in ("train", "validation", "test")
    ]
    assert all(sides)
    assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])


@pytest.mark.parametrize(
    ("discrete", "settings"),
    [
        (True, {}),
        (False, {}),
        (True, {"task.condition": False}),
        (False, {"task.states": 1.0, "task.returns": 0.5}),
        (True, {"model.mixer": "lstm"}),
        (False, {"model.mixer": "linear_attention", "task.condition": False}),
    ],
)
def test_one_batch_is_learnt_by_heart(discrete: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    task = opened(saved(tmp_path, discrete=discrete), tmp_path, **OFFLINE, **settings)
    model: Any = build(task.adapt(tiny(**settings).model), 1)
    batch = next(task.batches("train"))
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    worth = []
    for _ in range(45):
        losses = task.loss(model, batch)
        assert {name: loss.count for name, loss in losses.items()} == task.objective.counts(batch)
        loss = sum((each.total / each.count for each in losses.values()), torch.zeros(()))
        worth.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert worth[-1] < 0.1 * worth[0]
    assert set(losses) == {"actions", *(name for name in ("states", "returns") if f"task.{name}" in settings)}


def test_losses_are_those_of_the_steps_alone(tmp_path: Path) -> None:
    """Padding adds nothing; the next state of an episode's last step is no target."""
    settings = {"task.states": 2.0, "task.returns": 0.5, **OFFLINE}
    task = opened(saved(tmp_path, discrete=False), tmp_path, **settings)
    model, windows = built(task, **settings), task.examples.of("train")
    batch = windows.take(np.arange(20), RngKey(0, np.arange(1)))
    losses = task.loss(model, batch)
    with torch.no_grad():
        encoded, layout = model(*batch.inputs), batch.inputs[1]
        said = {name: model.heads[name](encoded.x, encoded.layout) for name in ("actions", "states", "returns")}
    total = {"actions": 0.0, "states": 0.0, "returns": 0.0}
    count = 0
    episodes, codec = task.examples.episodes, task.examples.codec
    lasts = {int(end) - 1 for end in episodes.ends}
    order = [step for n in windows.episodes for step in range(int(episodes.starts[n]), int(episodes.ends[n]))]
    to_go = episodes.returns_to_go() / codec.scale
    for row in range(20):
        for place in range(4):
            if layout.positions[row, place] < 0:
                continue
            step = order[row] - 3 + place
            target = codec.encode_actions(episodes.actions[step])
            total["actions"] += float(((said["actions"][row, place].numpy() - target) ** 2).mean())
            if step not in lasts:
                count += 1
                state = codec.states(episodes.states[step + 1])
                total["states"] += 2.0 * float(((said["states"][row, place].numpy() - state) ** 2).mean())
                total["returns"] += 0.5 * float((said["returns"][row, place, 0] - to_go[step + 1]) ** 2)
    for name, loss in losses.items():
        assert loss.total.item() == pytest.approx(total[name], rel=1e-4)
    assert losses["states"].count == losses["returns"].count == count < losses["actions"].count


class Plain:
    """What an actor is to say, by plain loops: the last K steps read as a whole."""

    def __init__(self, model: Transformer, codec: Any, targets: list[float]) -> None:
        self.model, self.codec, self.targets = model, codec, np.array(targets)
        self.states: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []

    def say(self, states: np.ndarray) -> np.ndarray:
        self.states.append(states)
        now, rows = len(self.states) - 1, len(states)
        first = max(0, now - self.codec.context + 1)
        returns = [self.targets - sum(self.rewards[:step], np.zeros(rows)) for step in range(first, now + 1)]
        actions = [torch.from_numpy(self.codec.encode_actions(self.actions[step])) for step in range(first, now)]
        actions.append(torch.zeros_like(actions[0]) if actions else self._nothing(rows))
        inputs = TrajectoryInputs(
            torch.stack([torch.from_numpy(self.codec.returns(each)) for each in returns], 1),
            torch.stack([torch.from_numpy(self.codec.states(each)) for each in self.states[first:]], 1),
            torch.stack(actions, 1),
            torch.arange(first, now + 1).expand(rows, -1),
        )
        if not self.model.config.embed.returns:  # type: ignore[attr-defined]
            inputs = inputs._replace(returns=None)
        with torch.no_grad():
            return self.model.output("actions", inputs, Layout.full(rows, now - first + 1))[:, -1].numpy()

    def _nothing(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, dtype=torch.long) if self.codec.choices else torch.zeros(rows, self.codec.actions)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"model.mixer": "lstm"}, {"model.mixer": "gated_delta"}, {"task.condition": False}]
)
def test_what_an_agent_says_step_by_step_is_what_it_says_of_the_window(
    discrete: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the episode fits into the window (from states), and when it does not any more (anew)."""
    task = opened(saved(tmp_path, discrete=discrete), tmp_path, **OFFLINE, **settings)
    model = built(task, **settings)
    said: list[np.ndarray] = []
    head: Any = model.heads["actions"]
    plain_said = head.predict

    def note(x: torch.Tensor) -> torch.Tensor:
        found = plain_said(x)
        said.append(found.detach().numpy())
        return found

    codec = task.examples.codec
    actor, plain = Actor(model, codec, [3.0, -1.0, 0.5], [1, 2, 3]), Plain(model, codec, [3.0, -1.0, 0.5])
    random = np.random.default_rng(1)
    for step in range(2 * codec.context + 1):
        states, rewards = (
            random.normal(size=(len(actor.to_go), 4)).astype(np.float32),
            random.normal(size=len(actor.to_go)),
        )
        monkeypatch.setattr(head, "predict", note)
        action = actor.act([], states)
        monkeypatch.setattr(head, "predict", plain_said)
        np.testing.assert_allclose(said[-1], plain.say(states), rtol=1e-4, atol=1e-5)
        actor.observe([], action, rewards)
        plain.actions.append(action)
        plain.rewards.append(rewards)
        if step in (1, 6):  # an episode ends
            going = np.array([0, 2]) if step == 1 else np.array([1])
            actor.keep_rows(going)
            plain.targets = plain.targets[going]
            for kept in (plain.states, plain.actions, plain.rewards):
                kept[:] = [each[going] for each in kept]


def test_choices_are_drawn_by_their_probabilities(tmp_path: Path) -> None:
    """And for each episode from its own seed, whoever plays beside it."""
    task = opened(saved(tmp_path), tmp_path, **OFFLINE, **{"task.draw": True})
    logits = np.log(np.array([[0.2, 0.5, 0.3]])).repeat(20_000, 0)
    drawn = task.examples.codec.decode_actions(logits, np.random.default_rng(0).random(20_000))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.2, 0.5, 0.3], atol=0.015)
    assert task.examples.codec.decode_actions(logits[:2], np.array([0.0, 1.0 - 1e-9])).tolist() == [0, 2]
    model, states = built(task), np.random.default_rng(1).normal(size=(9, 1, 4))
    alone = Actor(model, task.examples.codec, [1.0], [5])
    beside = Actor(model, task.examples.codec, [1.0, 1.0, 1.0], [4, 5, 6])
    said = [(alone.act([0], each)[0], beside.act([0, 1, 2], each.repeat(3, 0))[1]) for each in states]
    assert all(a == b for a, b in said)


def test_scales_are_those_of_the_training_episodes(tmp_path: Path) -> None:
    task = opened(saved(tmp_path, discrete=False), tmp_path, **OFFLINE)
    episodes, codec, training = task.examples.episodes, task.examples.codec, task.examples.splits.indices["train"]
    steps = np.concatenate([np.arange(episodes.starts[n], episodes.ends[n]) for n in training])
    np.testing.assert_allclose(codec.mean, episodes.states[steps].mean(0), rtol=1e-4, atol=1e-6)
    assert codec.scale == pytest.approx(np.abs(episodes.returns_to_go()[steps]).max())
    assert codec.target == pytest.approx(episodes.returns[training].max())
    assert codec.reach == pytest.approx((float(np.abs(episodes.actions[steps]).max()),))
    assert np.abs(codec.encode_actions(episodes.actions[steps])).max() <= 1
    task.save(tmp_path)
    assert TrajectoryCodec.read(tmp_path) == codec
    with pytest.raises(UserError, match=r"has no trajectories\.json"):
        TrajectoryCodec.read(tmp_path / "none")


def test_the_best_episodes_alone_are_learnt_from(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole, best = (opened(path, tmp_path, **OFFLINE, **{"task.best": share}) for share in (1.0, 0.25))
    assert len(best.examples.splits.indices["train"]) == round(0.25 * len(whole.examples.splits.indices["train"]))
    left = set(whole.examples.splits.indices["train"]) - set(best.examples.splits.indices["train"])
    returns = whole.examples.episodes.returns
    assert min(returns[list(best.examples.splits.indices["train"])]) >= max(returns[list(left)])
    assert best.examples.splits.indices["validation"].tolist() == whole.examples.splits.indices["validation"].tolist()


def test_models_get_the_sizes_of_the_data(tmp_path: Path) -> None:
    task = opened(saved(tmp_path, discrete=False, states=5), tmp_path, **OFFLINE, **{"task.condition": False})
    embed: Any = task.adapt(tiny().model).embed
    assert (embed.states.size, embed.actions, embed.discrete, embed.returns, embed.timesteps) == (
        5,
        1,
        False,
        False,
        20,
    )
    images = opened(
        saved(tmp_path, "b.npz", image=True),
        tmp_path,
        **OFFLINE,
        **{"model.embed.states": {"kind": "patches", "patch": [4, 4]}},
    )
    embed = images.adapt(tiny(**{"model.embed.states": {"kind": "patches", "patch": [4, 4]}}).model).embed
    assert embed.states == PatchesConfig((4, 4), (12, 8), 3)
    batch = next(images.batches("train"))
    assert batch.inputs[0].states.shape == (8, 4, 3, 12, 8)
    assert batch.inputs[0].states.min() >= 0
    assert batch.inputs[0].states.max() <= 1


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ({"image": True}, {}, "takes states as numbers, but the data have 3 x 12 x 8 numbers; set model.embed.states="),
        ({}, {"model.embed.states": {"kind": "convolutions"}}, "as convolutions, but the data have 4 numbers; set"),
        ({}, {"model": "gpt-1m"}, "model.embed=trajectories, but this TransformerConfig has another embed"),
        ({}, {"task.context": 0}, "task.context=0"),
        ({}, {"task.best": 0.0}, "task.best is 0.0"),
        ({}, {"task.scale": -1.0}, "task.scale is -1.0"),
        ({}, {"task.returns": 1.0, "task.condition": False}, "without task.condition"),
        ({}, {"train.batch_size": None, "train.batch_tokens": None}, "neither train.batch_tokens nor train.batch_size"),
        ({"count": 1}, {"task.split": {"validation": 0.99, "test": 0.0}}, "the train split of 1 episodes is empty"),
        ({}, {"task.split.validation": 0.0}, "the validation split of 30 episodes is empty"),
        ({"discrete": False}, {"task.random": 3}, "no environment is known"),
        ({}, {"task.env": "walks:Walk", "task.episodes": 1}, "'walks:Walk', which would run its own code"),
        (
            {},
            {"task.env": "CartPoll-v1", "task.episodes": 1},
            "did you mean 'CartPole-v1'.; or set task.episodes=0",
        ),
        (
            {},
            {"task.env": "Pendulum-v1", "task.episodes": 1},
            "takes actions of 1 number, but this model outputs 2 choices",
        ),
        (
            {"states": 3},
            {"task.env": "CartPole-v1", "task.episodes": 1},
            "has states of 4 numbers, .* takes 3 numbers",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(
    given: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, **given)
    recipe = "trajectories" if isinstance(settings.get("model"), str) else tiny()
    every = {**SETTINGS, **OFFLINE, **settings}

    def begin() -> None:
        chosen = configure_recipe(recipe, str(path), every, None)
        open_task(chosen, tmp_path).adapt(chosen.model)

    with pytest.raises(UserError, match=message):
        begin()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "takes states of 11 numbers, but the data have 4 numbers; use episodes from its environment"),
        ({"states": 11}, "takes actions of 3 numbers, but the data have 2 choices"),
        ({"states": 11, "discrete": False}, "takes actions of 3 numbers, but the data have 1 number"),
    ],
)
def test_episodes_that_do_not_fit_a_start_are_told(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Where nothing is started from, a model takes the sizes of the data."""
    path, model = saved(tmp_path, **given), preset("decision-hopper")
    recipe = replace(configure_recipe(tiny(**OFFLINE), str(path), {}, None), model=model)
    task: Any = open_task(recipe, tmp_path)
    assert task.adapt(model).embed.states.size == task.examples.codec.shape[0]
    with pytest.raises(ConfigError, match=message):
        open_task(replace(recipe, start="elsewhere"), tmp_path)


def test_a_window_longer_than_the_model_reads_is_told(tmp_path: Path) -> None:
    task = opened(saved(tmp_path), tmp_path, **OFFLINE)
    with pytest.raises(ConfigError, match=r"task.context=4 needs 12 tokens, but model.context is 9"):
        task.adapt(tiny(**{"model.context": 9}).model)


def test_episodes_by_chance_are_added(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with_some = opened(path, tmp_path, **{"task.random": 5})
    without = opened(path, tmp_path)
    assert len(with_some.examples.episodes) == len(without.examples.episodes) + 5
    again = opened(path, tmp_path, **{"task.random": 5})
    assert again.examples.episodes.keys() == with_some.examples.episodes.keys()


def test_a_recording_holds_what_the_model_plays_by_itself(tmp_path: Path) -> None:
    task = opened(saved(tmp_path), tmp_path, **{"model.embed.timesteps": 500})
    model, codec, copies = built(task), task.examples.codec, task.objective.envs
    actors = SeparateRows(lambda seeds: Actor(model, codec, [codec.target], seeds))
    recorder = Recorder(copies, [Mixture(actors, 0.0)], seed=3, horizon=None)
    recorder.run(3, num_parallel=2)
    played = play(model, codec, copies, codec.target, range(3, 6))
    np.testing.assert_array_equal(recorder.episodes().returns, played.returns)


def test_what_a_model_did_by_chance_is_what_it_remembers(tmp_path: Path) -> None:
    task = opened(saved(tmp_path), tmp_path)
    model, codec = built(task), task.examples.codec
    actors = SeparateRows(lambda seeds: Actor(model, codec, [codec.target], seeds))
    actors.start_episode(0, 7)
    first = np.zeros((1, 4), np.float32)
    other = 1 - int(actors.act([0], first)[0])
    actors.observe([0], np.array([other]), np.array([2.5]))
    actor: Any = actors._players[0]
    assert int(actor._actions[-1]) == other
    assert actor.to_go.tolist() == [task.examples.codec.target - 2.5]


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        ((-119.0, -119.0, -119.0), "achieved -119 on average: the achieved return does not depend on the target"),
        ((-121.0, -119.0, -120.0), "achieved from -121 to -119 on average: the achieved return does not depend"),
        ((-195.0, -152.0, -111.0), "the model achieved from -195 to -111 on average: it follows the target."),
        ((-150.0, -140.0, -125.0), "it partly follows the target."),
    ],
)
def test_what_is_reached_is_set_beside_what_was_asked_for(reached: tuple[float, ...], said: str) -> None:
    points = [Point(target, np.array([mean - 1, mean + 1])) for target, mean in zip((-200.0, -150.0, -110.0), reached)]
    found = return_effect(points)
    assert found.startswith("For target returns from -200 to -110, the model achieved")
    assert said in found
    assert return_effect(points[:1]) == ""


@pytest.mark.parametrize("discrete", [True, False])
def test_actions_that_pay_no_heed_to_the_return_are_told(discrete: bool, tmp_path: Path) -> None:
    task = opened(saved(tmp_path, discrete=discrete, count=300), tmp_path, **OFFLINE)
    model = built(task)
    weights = list(model.embed.get_submodule("returns").parameters())
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        found = task.objective.remark(model, task.examples)
        for weight in weights:
            weight.zero_()
    assert found.startswith("With target returns of ")
    assert "no difference" not in found
    assert task.objective.remark(model, task.examples).endswith("held-out steps: the target makes no difference.")
    deaf = opened(saved(tmp_path, discrete=discrete), tmp_path, **OFFLINE, **{"task.condition": False})
    model_without_target = built(deaf, **{"task.condition": False})
    assert deaf.objective.remark(model_without_target, deaf.examples) == ""


def test_data_of_one_return_are_told(tmp_path: Path) -> None:
    episodes = made()
    rewards = np.zeros_like(episodes.rewards)
    rewards[episodes.ends - 1] = 7
    write_episodes(tmp_path / "a.npz", replace(episodes, rewards=rewards))
    task = opened(tmp_path / "a.npz", tmp_path)
    told = "All training episodes have a return of 7, so the model knows no other target."
    assert task.objective.remark(built(task), task.examples) == told


def test_seeds_of_evaluations_are_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = opened(saved(tmp_path), tmp_path)
    model = built(task)
    seen: list[int] = []
    assert task.objective.envs is not None
    reset = task.objective.envs.reset
    monkeypatch.setattr(task.objective.envs, "reset", lambda row, seed: seen.append(seed) or reset(row, seed))
    scores = task.evaluate(model)
    assert seen == [1_000_000, 1_000_001]
    task.evaluate(model, "test")
    assert seen[2:] == [2_000_000, 2_000_001]
    assert {"return_mean", "return_mean_interval", "samples", "loss", "accuracy", "length_mean"} <= scores.keys()
    assert scores["samples"] == 2
    assert task.evaluate(model) == scores
    assert (task.goal, task.goal_better, task.final_split) == ("return_mean", "max", "test")


def test_code_that_data_name_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_episodes(tmp_path / "a.npz", replace(made(), environments=("os:getcwd",)))
    task = opened(tmp_path / "a.npz", tmp_path)
    assert (task.objective.envs, task.goal) == (None, "loss")
    assert "os:getcwd, but headway does not run its code" in caplog.text
    assert isinstance(built(task), nn.Module)
