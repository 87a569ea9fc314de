"""Rollouts and generalised advantage estimation: the agent plays, stores its steps and learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.domains.agents.agent_policy import (
    AgentCodec,
    LastStates,
    distribution,
    encode_states,
    policy_output,
    sample_actions,
    sample_noise,
)
from headway.environments.rollouts import training_seed
from headway.environments.vector_env import VectorEnv
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.nn.models import ModelFeatures, StatesEmbed, Transformer
from headway.nn.models.agents import RunningNorm

_EPS = 1e-8
_MAX_SCALED_REWARD = 10.0  # bound of scaled rewards, in standard deviations of returns
_NOISE_STREAM, _START_STREAM = 13, 14  # random streams, independent of others with the same seed
_EVAL_BATCH = 4096  # windows per batch without gradients


def value_output(model: Transformer, encoded: ModelFeatures) -> Float[Tensor, "B"]:
    """Return the expected return, in scaled rewards, from the last state of each row."""
    return cast(Tensor, model.heads["value"](encoded.x, encoded.layout))[:, 0]


def advantages(
    rewards: Float[np.ndarray, "T N"],
    values: Float[np.ndarray, "T N"],
    following: Float[np.ndarray, "T N"],
    ended: Bool[np.ndarray, "T N"],
    over: Bool[np.ndarray, "T N"],
    discount: float,
    trace: float,
) -> Float[np.ndarray, "T N"]:
    """Return advantages by generalised advantage estimation (Schulman et al. 2016, equation 16).

    `following` are the values of the next states. An episode that `ended` has no value after its last step. One that is
    `over` without having ended was truncated by a time limit: the value of its next state counts, but the advantages of
    the next episode do not.
    """
    errors = rewards + discount * following * ~ended - values
    estimates = np.empty_like(errors)
    running = np.zeros(errors.shape[1], errors.dtype)
    for step in range(len(errors) - 1, -1, -1):
        running = errors[step] + discount * trace * running * ~over[step]
        estimates[step] = running
    return estimates


class ReturnScale:
    """Divides rewards by the running standard deviation of the discounted return (Engstrom et al. 2020, appendix
    A.2).
    """

    def __init__(self, rows: int, discount: float) -> None:
        self.discount = discount
        self.sums = np.zeros(rows)
        self.mean, self.variance, self.count = 0.0, 1.0, 0.0

    def scale_rewards(
        self, rewards: Float[np.ndarray, "T N"], over: Bool[np.ndarray, "T N"]
    ) -> Float[np.ndarray, "T N"]:
        """Scale the rewards of the next T steps, after updating the statistics with them."""
        returns = np.empty_like(rewards)
        for step, reward in enumerate(rewards):
            self.sums = self.discount * self.sums + reward
            returns[step] = self.sums
            self.sums = np.where(over[step], 0.0, self.sums)
        new, total = float(returns.size), self.count + returns.size  # Chan, Golub and LeVeque 1979, equation 2.1
        shift = float(returns.mean()) - self.mean
        squares = self.count * self.variance + new * float(returns.var()) + shift**2 * self.count * new / total
        self.mean += shift * new / total
        self.variance, self.count = squares / total, total
        return np.clip(rewards / np.sqrt(self.variance + _EPS), -_MAX_SCALED_REWARD, _MAX_SCALED_REWARD)

    def state(self) -> dict[str, Tensor]:
        known = [self.mean, self.variance, self.count]
        return {"sums": torch.from_numpy(self.sums.copy()), "known": torch.tensor(known, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sums = state["sums"].numpy().copy()
        self.mean, self.variance, self.count = state["known"].tolist()


class Estimation(NamedTuple):
    """Settings of advantage estimation: `discount` (gamma), `trace` (lambda), and whether rewards are `scaled`."""

    discount: float
    trace: float
    scaled: bool


class PolicySteps(NamedTuple):
    """M steps taken by one policy: inputs [M, K, S] with the number of valid states in `lengths`, actions with their
    log probabilities, and value estimates.
    """

    windows: Float[Tensor, "M K S"]
    lengths: Int[Tensor, "M"]
    actions: Tensor
    log_probabilities: Float[Tensor, "M"]
    values: Float[Tensor, "M"]
    advantages: Float[Tensor, "M"]


class _Record(NamedTuple):
    """T steps in N environments, [T N] or [T, N], and the last states of truncated episodes."""

    windows: np.ndarray
    lengths: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray
    over: np.ndarray
    cut: list[tuple[int, int, np.ndarray, int]]


class Experience:
    """Plays in parallel environments. Their episodes continue from one call of `gather` to the next.

    The seed of episode e is a function of e, and actions are sampled from the seed and the step index. The seed and the
    actions of its running episode therefore determine an environment's state, so a checkpoint stores only these.
    `steps` counts the steps in all environments so far.
    """

    def __init__(
        self, model: Transformer, envs: VectorEnv, codec: AgentCodec, estimation: Estimation, seed: int
    ) -> None:
        self.model, self.envs, self.codec, self.estimation, self.seed = model, envs, codec, estimation, seed
        rows = len(envs)
        self.scale = ReturnScale(rows, estimation.discount)
        self.last = LastStates(rows, codec.context, codec.states)
        self.episodes = 0  # started so far
        self.steps = 0
        self.curve: list[tuple[float, float, float]] = []  # steps so far, mean return and number of ended episodes
        self._episode_ids = [0] * rows  # indices of the running episodes
        self._past: list[list[np.ndarray]] = [[] for _ in range(rows)]
        self._returns = np.zeros(rows)
        self.latest: PolicySteps | None = None  # the steps to learn from
        self._states_counted = False  # whether the latest states are in the running statistics

    @property
    def running(self) -> RunningNorm | None:
        """The running state normalisation, if the model has one."""
        embed = self.model.embed
        norm = embed.running if isinstance(embed, StatesEmbed) else None
        return norm if isinstance(norm, RunningNorm) else None

    def gather(self, count: int) -> PolicySteps:
        """Play the next `count` steps in each environment with the current policy. UserError if an environment fails.

        The state normalisation uses all earlier steps and stays fixed while the agent learns from the new ones. Since
        there are no statistics yet, the first steps update them at once; heads initialised to zero output the same on
        any scale.
        """
        if self.latest is None:
            for row in range(len(self.envs)):
                self._start_episode(row)
        elif not self._states_counted:
            self._update_norm(self.latest.windows, self.latest.lengths)
        first = self.running is not None and not bool(self.running.count)
        record = self._play(count)
        if first:
            self._update_norm(torch.from_numpy(record.windows), torch.from_numpy(record.lengths))
        self.latest, self._states_counted = self._estimate(record), first
        return self.latest

    def _update_norm(self, windows: Tensor, lengths: Tensor) -> None:
        """Update the running statistics with the last state in each window."""
        if self.running is not None:
            self.running.update(windows[torch.arange(len(windows)), lengths - 1].to(device_of(self.model)))

    def _start_episode(self, row: int) -> None:
        """Start a new episode in an environment."""
        self._episode_ids[row] = self.episodes
        self.episodes += 1
        self._past[row] = []
        self._returns[row] = 0.0
        seed = training_seed(_START_STREAM, self.seed, self._episode_ids[row])
        self.last.start(row, self.envs.reset(row, seed))

    @torch.no_grad()
    def _play(self, count: int) -> _Record:
        rows, codec, discrete = len(self.envs), self.codec, self.codec.choices is not None
        rng = np.random.default_rng([_NOISE_STREAM, self.seed, self.steps])
        noise = sample_noise(rng, (count, rows), discrete, codec.actions)
        windows = np.empty((count, *self.last.states.shape), np.float32)
        lengths = np.empty((count, rows), np.int64)
        actions = np.empty(noise.shape, np.int64 if discrete else np.float32)
        rewards, ended, over = np.zeros((count, rows)), np.zeros((count, rows), bool), np.zeros((count, rows), bool)
        cut: list[tuple[int, int, np.ndarray, int]] = []
        finished: list[float] = []
        for step in range(count):
            windows[step], lengths[step] = self.last.states, self.last.lengths
            encoded = encode_states(self.model, self.last.states, self.last.lengths)
            output = policy_output(self.model, encoded).cpu().numpy()
            actions[step] = sample_actions(output, discrete, noise[step])
            done = codec.to_environment(actions[step])
            for row in range(rows):
                after = self.envs.step(row, done[row])
                self._past[row].append(done[row])
                self._returns[row] += after.reward
                late = codec.horizon is not None and len(self._past[row]) >= codec.horizon
                rewards[step, row], ended[step, row] = after.reward, after.terminated
                self.last.add(row, after.state)
                if after.terminated or after.truncated or late:
                    over[step, row] = True
                    finished.append(self._returns[row])
                    if not after.terminated:
                        cut.append((step, row, self.last.states[row].copy(), int(self.last.lengths[row])))
                    self._start_episode(row)
        self.steps += count * rows
        self.curve.append((float(self.steps), float(np.mean(finished)) if finished else np.nan, float(len(finished))))
        windows, lengths, actions = (array.reshape(-1, *array.shape[2:]) for array in (windows, lengths, actions))
        return _Record(windows, lengths, actions, rewards, ended, over, cut)

    @torch.no_grad()
    def _estimate(self, record: _Record) -> PolicySteps:
        """Compute the advantages and log probabilities of the steps under the policy that took them."""
        count, rows = record.rewards.shape
        windows, lengths, actions = map(torch.from_numpy, (record.windows, record.lengths, record.actions))
        output, values = self._forward(record.windows, record.lengths)
        log_probabilities = distribution(output, self.codec.choices is not None).log_probability(actions)
        last_states = [self.last.states, *(array[None] for _, _, array, _ in record.cut)]
        sizes = np.concatenate([self.last.lengths, [length for *_, length in record.cut]]).astype(np.int64)
        _, last_values = self._forward(np.concatenate(last_states), sizes)
        array, after = values.reshape(count, rows).numpy().astype(np.float64), last_values.numpy().astype(np.float64)
        following = np.concatenate([array[1:], after[None, :rows]])
        for index, (step, row, *_) in enumerate(record.cut):
            following[step, row] = after[rows + index]
        rewards = self.scale.scale_rewards(record.rewards, record.over) if self.estimation.scaled else record.rewards
        discount, trace = self.estimation.discount, self.estimation.trace
        estimates = advantages(rewards, array, following, record.ended, record.over, discount, trace)
        advantage_tensor = torch.from_numpy(estimates.reshape(-1).astype(np.float32))
        return PolicySteps(windows, lengths, actions, log_probabilities, values, advantage_tensor)

    def _forward(self, windows: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return policy outputs and values for windows."""
        outputs, values = [], []
        for start in range(0, len(windows), _EVAL_BATCH):
            part = slice(start, start + _EVAL_BATCH)
            encoded = encode_states(self.model, windows[part], lengths[part])
            outputs.append(policy_output(self.model, encoded).cpu())
            values.append(value_output(self.model, encoded).cpu())
        return torch.cat(outputs), torch.cat(values)

    def state(self) -> dict[str, Tensor]:
        """Return everything that `restore` needs, as tensors."""
        kind = np.int64 if self.codec.choices is not None else np.float32
        past = [np.asarray(action, kind) for actions in self._past for action in actions]
        shape = () if self.codec.choices is not None else (self.codec.actions,)
        state = {
            "counts": torch.tensor([self.episodes, self.steps, int(self._states_counted)]),
            "numbers": torch.tensor(self._episode_ids),
            "lengths": torch.tensor([len(actions) for actions in self._past]),
            "past": torch.from_numpy(np.array(past, kind).reshape(len(past), *shape)),
            "curve": torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 3),
        }
        state = {name: tensor for name, tensor in state.items() if tensor.numel()}  # files cannot store empty tensors
        if self.latest is not None:
            state |= {f"latest.{name}": value for name, value in self.latest._asdict().items()}
        return state | {f"scale.{name}": value for name, value in self.scale.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restart the running episodes and replay their actions."""
        if len(state["numbers"]) != len(self.envs):
            raise UserError(
                f"the checkpoint has {len(state['numbers'])} environments, but task.num_envs={len(self.envs)}; resume "
                "with the original settings"
            )
        self.episodes, self.steps, counted = (int(number) for number in state["counts"])
        self._states_counted = bool(counted)
        self.scale.restore({name: state[f"scale.{name}"] for name in ("sums", "known")})
        if not self.steps:
            return
        self.curve = [tuple(line) for line in state["curve"].tolist()]  # type: ignore[misc]
        self.latest = PolicySteps(*(state[f"latest.{name}"].clone() for name in PolicySteps._fields))
        past = state["past"].numpy() if "past" in state else np.zeros(0)
        pasts = np.split(past, np.cumsum(state["lengths"].numpy())[:-1])
        for row, (number, past) in enumerate(zip(state["numbers"].tolist(), pasts)):
            actions: list[Any] = list(past)
            self._episode_ids[row], self._past[row], self._returns[row] = number, actions, 0.0
            self.last.start(row, self.envs.reset(row, training_seed(_START_STREAM, self.seed, number)))
            for action in actions:
                after = self.envs.step(row, action)
                self._returns[row] += after.reward
                self.last.add(row, after.state)
