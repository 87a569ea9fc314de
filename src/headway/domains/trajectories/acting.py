"""Rollouts of a trajectory model, which acts towards a target return in many parallel episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.data.episodes import describe_shape
from headway.domains.trajectories.trajectory_codec import TrajectoryCodec
from headway.environments import Returns, RowPolicy, VectorEnv, play_episodes
from headway.environments.rollouts import EpisodeWatch
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluation_mode
from headway.layout import Layout
from headway.nn.mixers import State, select
from headway.nn.models import StepHead, TrajectoryEmbed, TrajectoryInputs, Transformer

_RNG_STREAM = 11  # random stream, independent of the environments' for the same seed


class Actor:
    """Acts in B episodes of the same age, each with its own return-to-go and random generator. Continuous actions get
    normal noise with the standard deviation `noise`, in units of their scale.

    While the whole episode fits into the training window, the model decodes token by token from cached states.
    Afterwards the last K steps are re-encoded at each step, because cached keys would depend on steps outside the
    window. Both ways give the model's output for the window.
    """

    def __init__(
        self,
        model: Transformer,
        codec: TrajectoryCodec,
        targets: Sequence[float],
        seeds: Sequence[int],
        noise: float = 0.0,
    ) -> None:
        self.model, self.codec, self.noise = model, codec, noise
        self.embed = cast(TrajectoryEmbed, model.embed)
        self.head = cast(StepHead, model.heads["actions"])
        self.to_go = np.array(targets, np.float64)
        self.time = 0
        self._rngs = [np.random.default_rng([_RNG_STREAM, seed]) for seed in seeds]
        self._device = device_of(model)
        self._returns: list[Tensor] = []  # for the last K steps, each [B]
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._decoding: tuple[State, ...] | None = None

    @property
    def limit(self) -> int:
        """Maximum number of steps per episode: the model has no later timesteps."""
        return self.embed.config.timesteps

    @torch.no_grad()
    def act(self, states: np.ndarray) -> np.ndarray:
        """Return an action per row, int [B] or float [B, A]; `states` are the current states, [B, *shape]."""
        self._append(self._returns, torch.from_numpy(self.codec.returns(self.to_go)))
        self._append(self._states, torch.from_numpy(self.codec.states(states)))
        x = self._decode_step() if self.time < self.codec.context else self._encode_window()
        output = self.head.predict(x[:, -1]).float().cpu().numpy()
        if self.noise:
            output = output + self.noise * np.stack([rng.standard_normal(output.shape[1:]) for rng in self._rngs])
        action = self.codec.decode_actions(output, np.array([rng.random() for rng in self._rngs]))
        self._append(self._actions, torch.from_numpy(self.codec.encode_actions(action)))
        self.time += 1
        return action

    def observe_rewards(self, rewards: np.ndarray) -> None:
        """Subtract the rewards of the actions, [B], from the return-to-go."""
        self.to_go = self.to_go - rewards

    def observe_actions(self, actions: np.ndarray) -> None:
        """Replace the last actions by those that the environment executed, which its bounds may have changed."""
        self._actions[-1] = torch.from_numpy(self.codec.encode_actions(actions)).to(self._device)

    def keep_rows(self, rows: np.ndarray) -> None:
        """Continue only some of the episodes."""
        index = torch.from_numpy(rows).to(self._device)
        self.to_go = self.to_go[rows]
        self._rngs = [self._rngs[row] for row in rows.tolist()]
        for buffer in (self._returns, self._states, self._actions):
            buffer[:] = [tensor[index] for tensor in buffer]
        if self._decoding is not None:
            self._decoding = select(self._decoding, index)

    def _append(self, buffer: list[Tensor], new: Tensor) -> None:
        buffer.append(new.to(self._device))
        del buffer[: -self.codec.context]

    def _timesteps(self, first: int, count: int) -> Int[Tensor, "B K"]:
        times = torch.arange(first, first + count, device=self._device)
        return times.expand(len(self.to_go), count)

    def _inputs(self, actions: Tensor, first: int, count: int) -> TrajectoryInputs:
        """Return the timesteps of the last `count` steps, which start at `first`."""
        returns = torch.stack(self._returns[-count:], 1) if self.embed.config.returns else None
        return TrajectoryInputs(returns, torch.stack(self._states[-count:], 1), actions, self._timesteps(first, count))

    def _encode_window(self) -> Float[Tensor, "B T D"]:
        """Encode the whole window."""
        self._decoding = None
        count = len(self._states)
        actions = torch.stack(self._actions[-(count - 1) :], 1) if count > 1 else self._no_actions()
        inputs = self._inputs(actions, self.time - count + 1, count)
        return self.model(inputs, self.embed.default_layout(inputs)).x

    def _decode_step(self) -> Float[Tensor, "B T D"]:
        """Encode the tokens that this step adds, from the cached states."""
        batch, tokens = len(self.to_go), self.embed.config.tokens
        if self._decoding is None:
            x, layout = self.embed(self._inputs(self._no_actions(), 0, 1), Layout.full(batch, 1, device=self._device))
            self._decoding = self.model.stack.initial_states(batch, tokens * self.codec.context, like=x)
        else:
            here = Layout.full(batch, 1, self.time, device=self._device)
            x, layout = self.embed.step_tokens(self._actions[-1], self._inputs(self._no_actions(), self.time, 1), here)
        x, self._decoding, _ = self.model.stack(x, layout, self._decoding)
        return x

    def _no_actions(self) -> Tensor:
        """No actions, as a tensor."""
        shape = (len(self.to_go), 0) if self.codec.choices is not None else (len(self.to_go), 0, len(self.codec.reach))
        kind = torch.long if self.codec.choices is not None else torch.float32
        return torch.zeros(shape, dtype=kind, device=self._device)


class RecordingActors(RowPolicy):
    """A model that acts in episodes being recorded, with the target return from its run."""

    def __init__(self, model: Transformer, codec: TrajectoryCodec) -> None:
        self.model, self.codec = model, codec
        self._actors: dict[int, Actor] = {}  # one per row, because their episodes differ in age

    def start_episode(self, row: int, seed: int) -> None:
        self._actors[row] = Actor(self.model, self.codec, [self.codec.target], [seed])

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        with evaluation_mode(self.model):
            return np.concatenate([self._actors[row].act(state[None]) for row, state in zip(rows, states)])

    def observe_step(self, row: int, action: np.ndarray | np.integer | int, reward: float) -> None:
        self._actors[row].observe_actions(np.array([action]))
        self._actors[row].observe_rewards(np.array([reward]))


def check_fits(codec: TrajectoryCodec, envs: VectorEnv) -> None:
    """UserError for an environment whose states or actions differ from the model's."""
    spaces = envs.spaces
    if codec.choices != spaces.n_actions or (codec.choices is None and len(codec.reach) != spaces.action_size):
        raise UserError(
            f"the environment {envs.name!r} takes actions of {spaces.action_text}, but this model outputs "
            f"{codec.action_text}; choose a matching environment with --env, or train on episodes from this one"
        )
    if codec.shape != spaces.shape:
        actual, wanted = (describe_shape(np.empty((1, *shape))) for shape in (spaces.shape, codec.shape))
        raise UserError(
            f"the environment {envs.name!r} has states of {actual}, but this model takes {wanted}; choose a matching "
            "environment with --env, or train on episodes from this one"
        )


def play(
    model: Transformer,
    codec: TrajectoryCodec,
    envs: VectorEnv,
    target: float,
    seeds: Sequence[int],
    watch: EpisodeWatch | None = None,
) -> Returns:
    """Play an episode from each seed with the target return `target`; `watch` observes each step of the first one."""
    with evaluation_mode(model):
        return play_episodes(lambda group: Actor(model, codec, [target] * len(group), group), envs, seeds, watch)
