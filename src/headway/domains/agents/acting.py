"""Running agents, in parallel episodes or step by step for another program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from headway.domains.agents.agent_codec import AgentCodec
from headway.domains.agents.distributions import most_probable, sample_actions, sample_noise
from headway.domains.agents.experience import LastStates, layout_of, policy_output
from headway.environments import Returns, RowPolicy, VectorEnv, play_episodes
from headway.environments.rollouts import EpisodeWatch
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluation_mode
from headway.nn.models import Transformer

_RNG_STREAM = 15  # random stream, independent of the environments' for the same seed


class Agents:
    """Agents in B episodes of the same age; the samples in each depend only on its seed."""

    def __init__(self, model: Transformer, codec: AgentCodec, seeds: Sequence[int]) -> None:
        self.model, self.codec = model, codec
        self._rngs = [np.random.default_rng([_RNG_STREAM, seed]) for seed in seeds]
        self._last = LastStates(len(seeds), codec.context, codec.states)

    @property
    def limit(self) -> int | None:
        """Maximum steps of an episode."""
        return self.codec.horizon

    @torch.no_grad()
    def act(self, states: Float[np.ndarray, "B S"]) -> np.ndarray:
        """Return an action per row, int [B] or float32 [B, A] in the environment's units."""
        for row, state in enumerate(states):
            self._last.add(row, state)
        return _actions(self.model, self.codec, self._last.states, self._last.lengths, self._rngs)

    def observe_actions(self, actions: np.ndarray) -> None:
        """Agents do not use their past actions."""

    def observe_rewards(self, rewards: np.ndarray) -> None:
        """Agents do not use rewards."""

    def keep_rows(self, rows: np.ndarray) -> None:
        """Continue only some of the episodes."""
        self._rngs = [self._rngs[row] for row in rows.tolist()]
        self._last.select(rows)


def _actions(
    model: Transformer,
    codec: AgentCodec,
    states: Float[np.ndarray, "B K S"],
    lengths: np.ndarray,
    generators: Sequence[np.random.Generator],
) -> np.ndarray:
    """Return an action per row, given its last states, in the environment's units."""
    device, discrete = device_of(model), codec.choices is not None
    encoded = model(torch.from_numpy(states).to(device), layout_of(lengths, codec.context, device))
    output = policy_output(model, encoded).cpu().numpy()
    if not codec.draw:
        return codec.to_environment(most_probable(output, discrete))
    noise = np.stack([sample_noise(generator, (), discrete, codec.actions) for generator in generators])
    return codec.to_environment(sample_actions(output, discrete, noise))


class RecordingAgents(RowPolicy):
    """An agent that acts in episodes being recorded, which differ in age."""

    def __init__(self, model: Transformer, codec: AgentCodec, rows: int) -> None:
        self.model, self.codec = model, codec
        self._last = LastStates(rows, codec.context, codec.states)
        self._rngs = [np.random.default_rng()] * rows

    def start_episode(self, row: int, seed: int) -> None:
        self._last.lengths[row] = 0
        self._rngs[row] = np.random.default_rng([_RNG_STREAM, seed])

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        for row, state in zip(rows, states):
            self._last.add(row, state)
        indices = np.array(rows)
        with evaluation_mode(self.model), torch.no_grad():
            generators = [self._rngs[row] for row in rows]
            return _actions(self.model, self.codec, self._last.states[indices], self._last.lengths[indices], generators)


def play(
    model: Transformer, codec: AgentCodec, envs: VectorEnv, seeds: Sequence[int], watch: EpisodeWatch | None = None
) -> Returns:
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
                f"the observation is {state.dtype} {state.shape}, but this agent takes {self.codec.states} numbers; "
                "pass its environment's observation, flattened"
            )
        with evaluation_mode(self.model):
            action = self._agents.act(state.reshape(1, -1).astype(np.float32))[0]
        if self.codec.choices is not None:
            return self.codec.first + int(action)
        return action.reshape(self.codec.action_shape)
