"""Agents in action: in parallel episodes, or step by step for another program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from headway.domains.agents.codec import AgentCodec
from headway.domains.agents.distributions import chances, drawn, likeliest
from headway.domains.agents.experience import LastStates, layout_of, policy_of
from headway.environments import Copies, Returns, RowPolicy, played
from headway.environments.playing import EpisodeWatch
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.nn.models import Transformer

_DRAWS = 15  # random stream, independent of the environments' for the same seed


class Agents:
    """Agents in B episodes of the same age; samples depend only on the seed of each."""

    def __init__(self, model: Transformer, codec: AgentCodec, seeds: Sequence[int]) -> None:
        self.model, self.codec = model, codec
        self._chances = [np.random.default_rng([_DRAWS, seed]) for seed in seeds]
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
        return _actions(self.model, self.codec, self._last.seen, self._last.lengths, self._chances)

    def took(self, actions: np.ndarray) -> None:
        """Agents do not use their past actions."""

    def take(self, rewards: np.ndarray) -> None:
        """Agents do not use rewards."""

    def select(self, rows: np.ndarray) -> None:
        """Continue only some of the episodes."""
        self._chances = [self._chances[row] for row in rows.tolist()]
        self._last.select(rows)


def _actions(
    model: Transformer,
    codec: AgentCodec,
    seen: Float[np.ndarray, "B K S"],
    lengths: np.ndarray,
    generators: Sequence[np.random.Generator],
) -> np.ndarray:
    """Return an action per row from its last states, in the environment's units."""
    device, discrete = device_of(model), codec.choices is not None
    encoded = model(torch.from_numpy(seen).to(device), layout_of(lengths, codec.context, device))
    said = policy_of(model, encoded).cpu().numpy()
    if not codec.draw:
        return codec.done(likeliest(said, discrete))
    chance = np.stack([chances(each, (), discrete, codec.actions) for each in generators])
    return codec.done(drawn(said, discrete, chance))


class RecordingAgents(RowPolicy):
    """An agent that acts in the episodes of a recording, which differ in age."""

    def __init__(self, model: Transformer, codec: AgentCodec, rows: int) -> None:
        self.model, self.codec = model, codec
        self._last = LastStates(rows, codec.context, codec.states)
        self._chances = [np.random.default_rng()] * rows

    def begin(self, row: int, seed: int) -> None:
        self._last.lengths[row] = 0
        self._chances[row] = np.random.default_rng([_DRAWS, seed])

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        for row, state in zip(rows, states):
            self._last.add(row, state)
        some = np.array(rows)
        with evaluating(self.model), torch.no_grad():
            generators = [self._chances[row] for row in rows]
            return _actions(self.model, self.codec, self._last.seen[some], self._last.lengths[some], generators)


def play(
    model: Transformer, codec: AgentCodec, copies: Copies, seeds: Sequence[int], watch: EpisodeWatch | None = None
) -> Returns:
    """Play an episode from each seed; `watch` observes each step of the first one."""
    with evaluating(model):
        return played(lambda some: Agents(model, codec, some), copies, seeds, watch)


class AgentPolicy:
    """An agent that acts step by step."""

    def __init__(self, model: Transformer, codec: AgentCodec, seed: int = 0) -> None:
        self.model, self.codec, self.seed = model, codec, seed
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._acting = Agents(self.model, self.codec, [self.seed])

    def select_action(self, observation: Any) -> int | np.ndarray:
        """The action for an observation, as the environment takes it. UserError for an unsuitable observation."""
        seen = np.asarray(observation)
        if seen.dtype.kind not in "fiub" or seen.size != self.codec.states or not np.isfinite(seen).all():
            raise UserError(
                f"the observation is {seen.dtype} {seen.shape}, but this agent takes {self.codec.states} numbers; "
                "pass those of its environment, flattened"
            )
        with evaluating(self.model):
            action = self._acting.act(seen.reshape(1, -1).astype(np.float32))[0]
        if self.codec.choices is not None:
            return self.codec.first + int(action)
        return action.reshape(self.codec.action_shape)
