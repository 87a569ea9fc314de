"""Agents in the units of their environment: their action distributions, parallel episodes, and single steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.data.episodes import numbers_text
from headway.environments.acting_codec import ActingCodec
from headway.environments.rollouts import EpisodeWatch, PlayedEpisodes, Player, play_episodes, sample_choices
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of
from headway.layout import Layout
from headway.nn.models import ModelFeatures, Transformer, evaluation_mode

_RNG_STREAM = 15  # random stream, independent of the environments' for the same seed
_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a normal distribution of standard deviation 1


@dataclass(frozen=True)
class AgentCodec(ActingCodec):
    """A state has `states` numbers, and the agent sees the last `context` states. Actions are either one of `choices`,
    numbered from `first` in the environment, or vectors between `low` and `high` [A] (None: unbounded), which the
    environment takes in the shape `action_shape`.

    `environment` is the environment that it acts in, and `horizon` the maximum number of steps per episode if the
    environment has no limit. With `draw`, actions are sampled as in training; otherwise the most probable action is
    taken.
    """

    FILE: ClassVar[str] = "agent.json"
    CONTENT: ClassVar[str] = "the agent's states and actions"
    RECIPES: ClassVar[str] = "the ppo recipe"
    NOUN: ClassVar[str] = "agent"
    TRAINING: ClassVar[str] = "in this one"

    states: int
    choices: int | None
    first: int
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    action_shape: tuple[int, ...]
    context: int
    environment: str
    horizon: int | None = None
    draw: bool = False

    def __post_init__(self) -> None:
        if min(self.states, self.actions, self.context, self.horizon or 1) < 1 or len(self.low) != len(self.high):
            raise ConfigError(
                f"{self.FILE} is inconsistent ({self.states} states, {self.action_text}, context {self.context}, "
                f"horizon {self.horizon}, {len(self.high)} upper bounds); restore it from a copy"
            )

    @classmethod
    def of(cls, envs: VectorEnv, context: int, horizon: int | None, draw: bool) -> AgentCodec:
        """The codec for an environment. UserError for image states or for episodes without a step limit."""
        spaces = envs.spaces
        if spaces.image or len(spaces.shape) != 1:
            raise UserError(
                f"the environment {envs.name!r} returns images ({' x '.join(map(str, spaces.shape))}), but agents that "
                "learn online take vectors; wrap it to return vectors, or record episodes for the trajectories recipe"
            )
        if horizon is None and envs.horizon is None:
            raise UserError(
                f"the environment {envs.name!r} has no step limit, so an episode may never end; set task.horizon"
            )
        low, high = (
            tuple(float(edge) if np.isfinite(edge) else None for edge in bounds) for bounds in (spaces.low, spaces.high)
        )
        actions = (spaces.n_actions, spaces.first_action, low, high, spaces.action_shape)
        return cls(spaces.shape[0], *actions, context, envs.name, horizon, draw)

    @property
    def actions(self) -> int:
        """Number of choices, or values per action."""
        return len(self.low) if self.choices is None else self.choices

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.states,)

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Convert the policy's actions, [B] or [B, A], to the environment's units, within its bounds."""
        if self.choices is not None:
            return actions
        low = np.array([-np.inf if edge is None else edge for edge in self.low])
        high = np.array([np.inf if edge is None else edge for edge in self.high])
        bounded = np.isfinite(low) & np.isfinite(high)
        center = np.where(bounded, (np.where(bounded, low, 0) + np.where(bounded, high, 0)) / 2, 0.0)
        reach = np.where(bounded, np.where(bounded, high, 1) - center, 1.0)
        return np.clip(center + reach * actions, low, high).astype(np.float32)


class Categorical(NamedTuple):
    """One of C choices."""

    logits: Float[Tensor, "B C"]

    def log_probability(self, actions: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return self.logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]

    def entropy(self) -> Float[Tensor, "B"]:
        """In nats."""
        log = self.logits.log_softmax(-1)
        return -(log.exp() * log).sum(-1)


class Normal(NamedTuple):
    """A independent normal variables."""

    mean: Float[Tensor, "B A"]
    log_std: Float[Tensor, "B A"]

    def log_probability(self, actions: Float[Tensor, "B A"]) -> Float[Tensor, "B"]:
        standardized = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * standardized.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "B"]:
        """In nats."""
        return (self.log_std + _ENTROPY).sum(-1)


def distribution(output: Tensor, discrete: bool) -> Categorical | Normal:
    """Return the distribution of a policy head's output: logits, or means and log standard deviations."""
    return Categorical(output) if discrete else Normal(*output.chunk(2, -1))


def sample_actions(output: Float[np.ndarray, "B E"], discrete: bool, noise: np.ndarray) -> np.ndarray:
    """Sample actions from the policy's output: choices [B] with uniform `noise` [B] between 0 and 1, or vectors [B, A]
    with standard normal `noise` [B, A].
    """
    if not discrete:
        mean, log_std = np.split(output, 2, -1)
        return mean + np.exp(log_std) * noise
    return sample_choices(output, noise)


def most_probable(output: Float[np.ndarray, "B E"], discrete: bool) -> np.ndarray:
    """Return the most probable choices, or the means."""
    return output.argmax(-1) if discrete else np.split(output, 2, -1)[0]


def sample_noise(generator: np.random.Generator, shape: tuple[int, ...], discrete: bool, actions: int) -> np.ndarray:
    """Sample the float32 noise that `sample_actions` needs."""
    if discrete:
        return generator.random(shape, np.float32)
    return generator.standard_normal((*shape, actions), np.float32)


class LastStates:
    """The last K states of each of N rows: `states` [N, K, S], of which the first `lengths` [N] are valid."""

    def __init__(self, rows: int, context: int, states: int) -> None:
        self.states = np.zeros((rows, context, states), np.float32)
        self.lengths = np.zeros(rows, np.int64)

    def start(self, row: int, state: np.ndarray) -> None:
        """Set the first state of an episode."""
        self.lengths[row] = 0
        self.add(row, state)

    def add(self, row: int, state: np.ndarray) -> None:
        """Append a state; beyond K states the oldest one is dropped."""
        length = self.lengths[row]
        if length == self.states.shape[1]:
            self.states[row, :-1] = self.states[row, 1:]
            length -= 1
        self.states[row, length] = state
        self.lengths[row] = length + 1


def policy_output(model: Transformer, encoded: ModelFeatures) -> Float[Tensor, "B E"]:
    """Return the policy's output for the last state of each row: logits, or means and log standard deviations."""
    return model.heads["policy"](encoded.x, encoded.layout)


def layout_of(lengths: np.ndarray, context: int, device: torch.device | str = "cpu") -> Layout:
    """Return the layout of the last states of rows, int64 [B]: from position 0, padded at the end."""
    if context == 1:
        return Layout.full(len(lengths), 1, device=device)
    return Layout.padded(torch.from_numpy(lengths), context).to(device)


def encode_states(model: Transformer, states: np.ndarray, lengths: np.ndarray) -> ModelFeatures:
    """Return the model's features of the last states of rows, [B, K, S] with int64 [B] valid ones."""
    device = device_of(model)
    return model(torch.from_numpy(states).to(device), layout_of(lengths, states.shape[1], device))


class Agents(Player):
    """Agents in B episodes; the samples in each depend only on its seed."""

    def __init__(self, model: Transformer, codec: AgentCodec, seeds: Sequence[int]) -> None:
        self.model, self.codec, self.limit = model, codec, codec.horizon
        self._rngs = [np.random.default_rng([_RNG_STREAM, seed]) for seed in seeds]
        self._last = LastStates(len(seeds), codec.context, codec.states)

    def start_episode(self, row: int, seed: int) -> None:
        self._last.lengths[row] = 0
        self._rngs[row] = np.random.default_rng([_RNG_STREAM, seed])

    @torch.no_grad()
    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        """Return an action per row, int [B] or float32 [B, A] in the environment's units."""
        for row, state in zip(rows, states):
            self._last.add(row, state)
        codec, discrete, index = self.codec, self.codec.choices is not None, np.array(rows)
        with evaluation_mode(self.model):
            encoded = encode_states(self.model, self._last.states[index], self._last.lengths[index])
            output = policy_output(self.model, encoded).cpu().numpy()
        if not codec.draw:
            return codec.to_environment(most_probable(output, discrete))
        noise = np.stack([sample_noise(self._rngs[row], (), discrete, codec.actions) for row in rows])
        return codec.to_environment(sample_actions(output, discrete, noise))


def play(
    model: Transformer, codec: AgentCodec, envs: VectorEnv, seeds: Sequence[int], watch: EpisodeWatch | None = None
) -> PlayedEpisodes:
    """Play an episode from each seed; `watch` observes each step of the first one."""
    with evaluation_mode(model):
        return play_episodes(lambda group: Agents(model, codec, group), envs, seeds, watch)


class AgentPolicy:
    """An agent that acts step by step."""

    def __init__(self, model: Transformer, codec: AgentCodec, seed: int = 0) -> None:
        self.model, self.codec, self.seed = model, codec, seed
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._agents = Agents(self.model, self.codec, [self.seed])

    def select_action(self, observation: Any) -> int | np.ndarray:
        """The action for an observation, in the environment's format. UserError for an unsuitable observation."""
        state = np.asarray(observation)
        if state.dtype.kind not in "fiub" or state.size != self.codec.states or not np.isfinite(state).all():
            raise UserError(
                f"the observation is {state.dtype} {state.shape}, but this agent takes "
                f"{numbers_text(self.codec.states)}; pass its environment's observation, flattened"
            )
        action = self._agents.act([0], state.reshape(1, -1).astype(np.float32))[0]
        if self.codec.choices is not None:
            return self.codec.first + int(action)
        return action.reshape(self.codec.action_shape)
