"""Agents that learn online: the objective against its formulas, time limits, exact resuming, and learning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from own_module import own_module
from tiny_runs import cut_back, weights

import headway as hw
from headway.app import api
from headway.app.cli import main as cli
from headway.config import override
from headway.data.episode_files import read_episodes
from headway.domains import recipe as find_recipe
from headway.domains.agents.agent_policy import (
    AgentCodec,
    Categorical,
    LastStates,
    Normal,
    most_probable,
    play,
    sample_actions,
    sample_noise,
)
from headway.domains.agents.experience import Estimation, Experience, ReturnScale, advantages
from headway.domains.agents.task import PPOConfig, learning_curve, make_batch, surrogate, value_error
from headway.environments.rollouts import training_seed
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError
from headway.learn import Recipe
from headway.learn.task import Task
from headway.nn.models import Transformer, actor_critic, build
from headway.nn.models.agents import RunningNorm

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

OWN = '''
import gymnasium
import numpy as np

class Light(gymnasium.Env):
    """Which of three lamps is on is shown; to press its button is worth 1. Ten presses are an episode."""
    observation_space = gymnasium.spaces.Box(-100, 100, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        self.lamp = int(self.np_random.integers(3))
        return (50 * np.eye(3)[self.lamp] + 20).astype(np.float32)

    def step(self, action):
        self.steps += 1
        reward = 7.0 * (action == 5 + self.lamp)
        return self.look(), reward, self.steps == 10, False, {}

class Memory(Light):
    """The lamp is shown in the first step alone, and asked for in the third, which is the last."""
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wanted = self.lamp
        return np.eye(3)[self.wanted].astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        last = self.steps == 3
        return np.zeros(3, np.float32), float(last and action == 5 + self.wanted), last, False, {}

class Target(gymnasium.Env):
    """The number that is shown is to be said, from -3 to 3, where actions go from -4 to 4."""
    observation_space = gymnasium.spaces.Dict({"seen": gymnasium.spaces.Box(-3, 3, (1,), np.float32)})
    action_space = gymnasium.spaces.Box(-4, 4, (1, 1), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        self.number = self.np_random.uniform(-3, 3, 1).astype(np.float32)
        return {"seen": self.number}

    def step(self, action):
        self.steps += 1
        reward = -float(abs(action[0, 0] - self.number[0]))
        return self.look(), reward, False, self.steps == 8, {}

class Endless(Light):
    def step(self, action):
        return *super().step(action)[:2], False, False, {}

class Fails(Light):
    def step(self, action):
        if self.steps == 7:
            raise ZeroDivisionError("by wheels")
        return super().step(action)

class Nowhere(Light):
    def step(self, action):
        seen, _, *rest = super().step(action)
        return seen, float("nan"), *rest

class Pixels(Light):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)

class Both(Light):
    action_space = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)])

class Words(Light):
    observation_space = gymnasium.spaces.Dict({"said": gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))})
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_module(tmp_path, "lamps", OWN, monkeypatch)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take as long as what is tested here."""
    monkeypatch.setattr(api, "available", lambda: False)


def tiny(**settings: Any) -> Recipe:
    """Periods of 8 batches of 32 steps, of 4 copies."""
    base = {
        "task.num_envs": 4,
        "task.steps": 32,
        "task.epochs": 2,
        "task.episodes": 4,
        "task.horizon": 20,
        "train.batch_size": 32,
        "train.steps": 30,
        "train.evaluate_every": 6,
        "train.keep_checkpoints": 9,
        "model.width": 16,
    }
    return override(find_recipe("ppo"), {**base, **settings})


def plainly(rewards: Any, values: Any, following: Any, ended: Any, over: Any, gamma: float, trace: float) -> Any:
    """The advantages of one row by the definition: a sum over what came later in the same episode."""
    errors = [r + gamma * f * (not e) - v for r, v, f, e in zip(rewards, values, following, ended)]
    found = []
    for start in range(len(errors)):
        total, weight = 0.0, 1.0
        for step in range(start, len(errors)):
            total += weight * errors[step]
            if over[step]:
                break
            weight *= gamma * trace
        found.append(total)
    return found


def test_advantages_are_the_sums_of_the_definition() -> None:
    random = np.random.default_rng(0)
    rewards, values, following = random.normal(size=(3, 12, 4))
    ended = random.random((12, 4)) < 0.15
    over = ended | (random.random((12, 4)) < 0.15)
    found = advantages(rewards, values, following, ended, over, 0.9, 0.8)
    for row in range(4):
        columns = (each[:, row] for each in (rewards, values, following, ended, over))
        np.testing.assert_allclose(found[:, row], plainly(*columns, 0.9, 0.8), rtol=1e-12)


def test_a_limit_of_time_is_not_an_end() -> None:
    """What is cut off has the value of where it was; what ended is worth nothing more. Neither looks past its end."""
    rewards, values, following = np.ones((2, 2)), np.zeros((2, 2)), np.full((2, 2), 10.0)
    ended, over = np.array([[True, False], [True, False]]), np.ones((2, 2), bool)
    found = advantages(rewards, values, following, ended, over, 0.5, 1.0)
    np.testing.assert_array_equal(found, [[1.0, 6.0], [1.0, 6.0]])


def test_the_value_after_a_cut_is_that_of_the_last_state_and_not_of_the_next_start(own: Path) -> None:
    copies, task = VectorEnv("lamps:Target", 2), PPOConfig()
    codec = AgentCodec(1, None, 0, (-4.0,), (4.0,), (1, 1), 1, "lamps:Target", 20)
    model = build(actor_critic(1, 1, discrete=False, width=8), 0)
    assert isinstance(model, Transformer)
    torch.nn.init.normal_(model.heads["value"].project.weight)
    experience = Experience(model, copies, codec, Estimation(0.9, 0.0, False), 0)
    found = experience.gather(8)
    again = VectorEnv("lamps:Target", 1)
    seen = [again.reset(0, training_seed(14, 0, 0))]
    rewards = []
    for action in found.actions[::2].numpy():
        step = again.step(0, codec.to_environment(action))
        seen.append(step.state)
        rewards.append(step.reward)
    assert step.truncated
    windows = torch.from_numpy(np.stack(seen))[:, None]
    values = model.output("value", windows)[:, 0].detach()
    wanted = torch.tensor(rewards) + 0.9 * values[1:] - values[:-1]
    torch.testing.assert_close(found.advantages[::2], wanted.float(), rtol=1e-4, atol=1e-5)
    assert task.trace == 0.95
    copies.close()
    again.close()


def test_the_objective_is_that_of_the_paper() -> None:
    """Equation 7, one by one."""
    random = torch.Generator().manual_seed(0)
    logits, before = torch.randn(50, 3, generator=random), torch.randn(50, generator=random) - 1
    better, actions = torch.randn(50, generator=random), torch.randint(3, (50,), generator=random)
    found = surrogate(Categorical(logits), actions, before, better, 0.2)
    for row in range(50):
        ratio = float(logits[row].softmax(0)[actions[row]]) / math.exp(before[row])
        near = min(max(ratio, 0.8), 1.2)
        wanted = -min(ratio * float(better[row]), near * float(better[row]))
        assert float(found[row]) == pytest.approx(wanted, rel=1e-4)


def test_a_clipped_ratio_has_no_gradient_where_it_went_far_enough() -> None:
    logits = torch.zeros(4, 2, requires_grad=True)
    before = torch.log(torch.tensor([0.3, 0.3, 0.8, 0.8]))  # ratios of 1.67 and 0.63
    better = torch.tensor([1.0, -1.0, -1.0, 1.0])
    surrogate(Categorical(logits), torch.zeros(4, dtype=torch.long), before, better, 0.2).sum().backward()
    assert logits.grad is not None
    assert logits.grad.any(-1).tolist() == [False, True, False, True]


def test_errors_of_values_and_their_clip() -> None:
    values, before, targets = torch.tensor([2.0, 0.5]), torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0])
    assert value_error(values, before, targets, None).tolist() == [0.5, 0.125]
    assert value_error(values, before, targets, 0.5).tolist() == [0.5 * 2.5**2, 0.125]


def test_distributions_are_those_of_torch() -> None:
    random = torch.Generator().manual_seed(0)
    mean, log_std, actions = torch.randn(3, 5, 2, generator=random)
    normal, choices = Normal(mean, log_std), torch.randint(2, (5,), generator=random)
    theirs = torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(normal.log_probability(actions), theirs.log_prob(actions).sum(-1))
    torch.testing.assert_close(normal.entropy(), theirs.entropy().sum(-1))
    other = torch.distributions.Categorical(logits=mean)
    torch.testing.assert_close(Categorical(mean).log_probability(choices), other.log_prob(choices))
    torch.testing.assert_close(Categorical(mean).entropy(), other.entropy())


def test_actions_are_drawn_as_often_as_they_are_probable() -> None:
    generator = np.random.default_rng(0)
    said = np.tile(np.log([0.2, 0.5, 0.3]).astype(np.float32), (20_000, 1))
    found = sample_actions(said, True, sample_noise(generator, (20_000,), True, 3))
    np.testing.assert_allclose(np.bincount(found) / 20_000, [0.2, 0.5, 0.3], atol=0.02)
    assert most_probable(said[:1], True).tolist() == [1]
    numbers = sample_actions(
        np.tile(np.float32([1.0, math.log(2)]), (20_000, 1)), False, sample_noise(generator, (20_000,), False, 1)
    )
    assert (numbers.mean(), numbers.std()) == pytest.approx((1.0, 2.0), abs=0.05)
    assert most_probable(np.float32([[1.0, 9.0]]), False).tolist() == [[1.0]]


def test_numbers_reach_their_bounds_and_no_farther() -> None:
    codec = AgentCodec(1, None, 0, (-1.0, 2.0, None, 0.0), (3.0, 2.5, None, None), (4,), 1, "")
    found = codec.to_environment(np.array([[0.0, 0.0, 0.0, 0.5], [1.0, -1.0, 7.0, -2.0], [-9.0, 9.0, -7.0, 9.0]]))
    np.testing.assert_allclose(found, [[1, 2.25, 0, 0.5], [3, 2, 7, 0], [-1, 2.5, -7, 9]])


def test_a_scale_knows_all_that_it_saw() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(3, 2, (size, 4)).astype(np.float32) for size in (1, 7, 500)]
    norm, whole = RunningNorm(4), np.concatenate(parts)
    for part in parts:
        norm.update(torch.from_numpy(part))
    np.testing.assert_allclose(norm.mean, whole.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.variance, whole.var(0), rtol=1e-4)
    assert float(norm(torch.full((1, 4), 1e6)).max()) == 10.0


def test_rewards_are_divided_by_how_far_returns_differ() -> None:
    random = np.random.default_rng(0)
    rewards, over = random.normal(size=(40, 3)) * 100, random.random((40, 3)) < 0.2
    sums, known = np.zeros(3), []
    for reward, end in zip(rewards, over):
        sums = 0.9 * sums + reward
        known.append(sums)
        sums = np.where(end, 0.0, sums)
    scale = ReturnScale(3, 0.9)
    parts = [scale.scale_rewards(rewards[:15], over[:15]), scale.scale_rewards(rewards[15:], over[15:])]
    np.testing.assert_allclose(parts[0], rewards[:15] / np.std(known[:15]), rtol=1e-6)
    np.testing.assert_allclose(parts[1], rewards[15:] / np.std(known), rtol=1e-6)


def test_the_last_states_move_on() -> None:
    last = LastStates(1, 2, 1)
    last.start(0, np.float32([1]))
    assert (last.states[0, 0].tolist(), last.lengths.tolist()) == ([1.0], [1])
    for number in (2, 3):
        last.add(0, np.float32([number]))
    assert (last.states[0].ravel().tolist(), last.lengths.tolist()) == ([2.0, 3.0], [2])
    last.start(0, np.float32([9]))
    assert (last.states[0, 0].tolist(), last.lengths.tolist()) == ([9.0], [1])


def opened(tmp_path: Path, **settings: Any) -> tuple[Recipe, Task, Transformer]:
    recipe = tiny(**settings)
    task = recipe.task.open(recipe, None, tmp_path)
    assert isinstance(task, Task)
    recipe = replace(recipe, model=task.adapt(recipe.model))
    model = build(recipe.model, 0)
    assert isinstance(model, Transformer)
    return recipe, task, model


def test_each_step_comes_once_in_an_epoch_and_ratios_begin_at_1(tmp_path: Path) -> None:
    _, task, model = opened(tmp_path, **{"task.env": "CartPole-v1"})
    examples: Any = task.examples
    examples.start_exploring(model)
    stream = task.batches("train")
    batches = [next(stream) for _ in range(examples.rollout_batches)]
    assert (examples.rollout_batches, examples.steps_per_period) == (8, 128)
    latest = examples.experience.latest
    for epoch in (batches[:4], batches[4:]):
        seen = torch.cat([batch.targets.returns for batch in epoch])
        assert torch.equal(seen.sort().values, (latest.values + latest.advantages).sort().values)
    assert not torch.equal(batches[0].targets.returns, batches[4].targets.returns)
    losses = task.loss(model, batches[0])
    assert losses["policy"].total.item() == pytest.approx(0, abs=1e-3)  # of advantages whose mean is 0
    assert {loss.count for loss in losses.values()} == {32}
    next(stream)
    assert examples.experience.steps == 256
    task.close()


def test_normalised_advantages() -> None:
    steps = [torch.zeros(6, 1, 1), torch.ones(6, dtype=torch.long), torch.zeros(6), torch.zeros(6), torch.arange(6.0)]
    from headway.domains.agents.experience import PolicySteps

    batch = make_batch(PolicySteps(*steps, torch.arange(6.0)), torch.tensor([0, 2, 4]))
    assert batch.targets.advantages.tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert batch.targets.returns.tolist() == [0.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"task.context": 3, "model.mixer": "lstm"}),
        ("Pendulum-v1", {"train.accumulate": 2}),
    ],
)
def test_a_run_goes_on_bit_for_bit_and_two_are_equal(
    env: str, settings: dict[str, Any], tmp_path: Path, no_page: None
) -> None:
    """Also from the middle of a period, and of the episodes that are under way there."""
    recipe = tiny(**{"task.env": env, "train.steps": 12, "train.checkpoint_every": 5, **settings})
    runs = [hw.train(recipe, run=tmp_path / name, progress=False, samples=0).directory for name in "ab"]
    runs.append(cut_back(runs[0], tmp_path / "c", step=5))
    hw.train(recipe, run=runs[2], resume=True, progress=False, samples=0)
    for name, tensor in weights(runs[0]).items():
        assert torch.equal(tensor, weights(runs[1])[name]), name
        assert torch.equal(tensor, weights(runs[2])[name]), name
    kept = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    shown = [[{k: v for k, v in line.items() if "second" not in k} for line in lines] for lines in kept]
    assert shown[0] == shown[1] == shown[2]


@pytest.mark.parametrize(
    ("env", "least", "settings"),
    [
        (
            "lamps:Light",
            63.0,
            {"task.num_envs": 8, "train.steps": 160, "train.batch_size": 64, "train.evaluate_every": 80},
        ),
        (
            "lamps:Target",
            -8.0,
            {"task.num_envs": 8, "train.steps": 320, "train.batch_size": 64, "train.evaluate_every": 80},
        ),
        (
            "lamps:Memory",
            0.9,
            {"task.num_envs": 8, "task.context": 3, "model.mixer": "gru", "train.steps": 160, "train.batch_size": 64},
        ),
    ],
)
def test_it_learns(
    env: str, least: float, settings: dict[str, Any], own: Path, monkeypatch: pytest.MonkeyPatch, no_page: None
) -> None:
    """Choices, numbers within bounds, and what only one who remembers can know."""
    monkeypatch.setenv("HEADWAY_ENV", env)
    common = {"optim.lr": 3e-3, "task.episodes": 32, "task.epochs": 4, "task.discount": 0.5}
    run = hw.train(tiny(**{**common, **settings}), run=own / "run", progress=False, samples=2)
    scores = run.summary["scores"]
    assert scores["return_mean"] >= least
    assert run.summary["samples"][0].keys() == {"return", "steps"}
    model = hw.load(own / "run")
    with pytest.raises(UserError, match="which would run its own code"):
        model.rollout()
    again = model.rollout(env, episodes=32)
    assert again["return_mean"] == scores["return_mean"]
    policy, environment = model.policy(), gymnasium.wrappers.FlattenObservation(VectorEnv(env, 1)._environments[0])
    total, over, (seen, _) = 0.0, False, environment.reset(seed=again["seed"])
    while not over:
        seen, reward, ended, cut, _ = environment.step(policy.select_action(seen))
        total, over = total + reward, ended or cut
    assert total == pytest.approx(again["results"][0]["returns"][0], rel=1e-5)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (None, {}, "no environment is set; set task.env=CartPole-v1"),
        (None, {"task.env": "CartPoll-v1"}, "did you mean 'CartPole-v1'"),
        (None, {"task.env": "lamps:Light"}, "which would run its own code.*HEADWAY_ENV=lamps:Light"),
        ("lamps:Pixels", {}, r"returns images \(8 x 8 x 3\), but agents that learn online take vectors"),
        ("lamps:Both", {}, "has the action space Tuple"),
        ("lamps:Words", {}, "has observations .*Sequence.*without a fixed size"),
        ("lamps:Endless", {"task.horizon": None}, "has no step limit.*task.horizon"),
        ("lamps:Light", {"train.batch_size": 48}, "batches of 48 steps do not divide the 128 steps.*such as 32"),
        ("lamps:Light", {"task.num_envs": 0}, "task.num_envs is 0; choose 1 or more"),
        ("lamps:Light", {"task.discount": 1.1}, "task.discount is 1.1; choose a number from 0 to 1"),
        ("lamps:Light", {"task.clip": 0.0}, "choose numbers above 0"),
        ("lamps:Light", {"task.entropy": -1.0}, "choose 0 or more"),
        ("lamps:Fails", {}, "'lamps:Fails' failed in its step .ZeroDivisionError: by wheels"),
        ("lamps:Nowhere", {}, "returned the reward nan"),
    ],
)
def test_what_cannot_be_learnt_in_is_told(
    env: str | None, settings: dict[str, Any], message: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if env is not None:
        monkeypatch.setenv("HEADWAY_ENV", env)
    with pytest.raises(UserError, match=message):
        hw.train(tiny(**settings), run=own / "run", progress=False)


def test_the_command_line(own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "available", lambda: False)

    def said(*words: str, code: int = 0) -> tuple[Any, str]:
        assert cli.main([*words]) == code
        out, err = capsys.readouterr()
        return (json.loads(out.splitlines()[-1]) if out and "--json" in words else out), err

    few = ["train.steps=8", "task.num_envs=2", "task.steps=16", "train.batch_size=16", "task.episodes=2"]
    train = ["train", "ppo", "--run", "runs/a", "--json", "--set", "task.env=CartPole-v1", *few]
    found, _ = said(*train)
    assert found["scores"]["split"] == "test"
    found, _ = said("rollout", "runs/a", "--episodes", "3", "--draw", "--json")
    assert (found["environment"], found["samples"], len(found["results"][0]["returns"])) == ("CartPole-v1", 3, 3)
    found, _ = said("evaluate", "runs/a", "--json")
    assert found["return_mean"] > 0
    rows, _ = said("recipes", "--json")
    assert next(row for row in rows["recipes"] if row["name"] == "ppo")["data"] == "generated"
    for words, message in (
        (["rollout", "runs/a", "--target-return", "5"], "an agent without target returns"),
        (["rollout", "runs/a", "--env", "Acrobot-v1"], "has states of 6 numbers, but this agent takes 4"),
        (["rollout", "runs/a", "--env", "lamps:Nowhere"], "has states of 3 numbers"),
        (["rollout", "runs/a", "--execute", "2"], "predicts one action at a time"),
        (["train", "ppo", "--minutes", "0"], "above 0"),
        (
            ["train", "ppo", "--data", "lamps.py", "--set", "task.env=CartPole-v1"],
            "lamps.py); remove --data",
        ),
        (["train", "ppo", "--run", "runs/b", "--set", "task.env=CartPole-v1", "model.width=0"], "width"),
    ):
        _, err = said(*words, code=2)
        assert message in err
        assert "Traceback" not in err
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    _, err = said("train", "ppo", "--run", "runs/c", "--set", "task.env=CartPole-v1", code=2)
    assert "pip install 'headway[rl]'" in err


def test_the_agent_of_a_run_records_the_episodes_that_it_plays(
    own: Path, capsys: pytest.CaptureFixture[str], no_page: None
) -> None:
    """Each row is of its own age and remembers its own last states; random actions are part of what it remembers."""
    recipe = tiny(**{"task.env": "CartPole-v1", "train.steps": 2, "task.context": 3, "task.draw": True})
    run = hw.train(recipe, run=own / "run", progress=False, samples=0)
    command = ["data", "collect", "CartPole-v1", "--policy", "run", "--seed", "5", "--horizon", "20"]
    assert cli.main([*command, "--episodes", "5", "--at-once", "2", "--out", "own.npz"]) == 0
    with VectorEnv("CartPole-v1", 2) as copies:
        played = play(cast(Any, run.model), AgentCodec.read(run.directory), copies, range(5, 10))
    recorded = read_episodes([Path("own.npz")])
    np.testing.assert_array_equal(recorded.returns, played.returns)
    assert recorded.environment == "CartPole-v1"
    assert cli.main([*command[:5], "random", "--mix", "0", "0.5", "--episodes", "8", "--out", "mixed.npz"]) == 0
    assert len(read_episodes([Path("mixed.npz")])) == 8
    capsys.readouterr()
    for words, message in (
        (["data", "collect", "Acrobot-v1", "--policy", "run", "--out", "b.npz"], "states of 6 numbers"),
        (["data", "collect", "CartPole-v1", "--policy", ".", "--out", "b.npz"], "has no model"),
        (
            ["data", "collect", "CartPole-v1", "--policy", "nobody", "--out", "b.npz"],
            "unknown policy 'nobody'; use random,",
        ),
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err


def test_an_agent_says_what_it_cannot_read(tmp_path: Path, no_page: None) -> None:
    run = hw.train(tiny(**{"task.env": "CartPole-v1", "train.steps": 2}), run=tmp_path / "a", progress=False, samples=0)
    model = hw.load(run.directory)
    for wrong in ([1.0, 2.0], [1.0, 2.0, 3.0, float("nan")], ["a", "b", "c", "d"]):
        with pytest.raises(UserError, match="but this agent takes 4 numbers"):
            model.policy().select_action(wrong)
    with pytest.raises(UserError, match="is an agent for one environment; omit task"):
        model.policy("push")
    (run.directory / "agent.json").unlink()
    with pytest.raises(UserError, match=r"has no agent\.json"):
        model.rollout()


def test_a_curve_is_of_the_episodes_that_ended() -> None:
    """Means are weighed by how many there are; where none ended there is no point."""
    lines = [(float(number), float(number % 2), float(number % 3)) for number in range(1, 601)]
    picture = learning_curve(lines)[0]
    assert picture.caption.startswith("averages over 600 training episodes")
    assert learning_curve([(10.0, float("nan"), 0.0), (20.0, 5.0, 2.0)]) == []


def test_a_model_that_is_no_agents_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not take states"):
        hw.train("ppo", set={"task.env": "CartPole-v1", "model": "gpt2"}, run=tmp_path / "a", progress=False)
