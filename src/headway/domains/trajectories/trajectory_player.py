"""Trajectory models in the units of their environment; they act towards a target return in many parallel episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from headway.data.affine_scale import AffineScale
from headway.data.episodes import Episodes, numbers_text, step_indices
from headway.environments.acting_codec import ActingCodec
from headway.environments.rollouts import EpisodeWatch, PlayedEpisodes, Player, play_episodes, sample_choices
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of
from headway.layout import Layout
from headway.nn.mixers import State, select
from headway.nn.models import StepHead, TrajectoryEmbed, TrajectoryInputs, Transformer, evaluation_mode

_RNG_STREAM = 11  # random stream, independent of the environments' for the same seed


@dataclass(frozen=True)
class TrajectoryCodec(ActingCodec):
    """States of `shape` are taken minus `mean` and divided by `std` (both empty for images, whose bytes are scaled to 0
    to 1). Returns are divided by `scale`. Actions are one of `choices`, or vectors divided by `reach` [A].

    The model takes `context` steps at once; `target` is the default target return, and `environment` the environment
    that it acts in. With `draw`, choices are sampled; otherwise the most probable one is taken.
    """

    FILE: ClassVar[str] = "trajectories.json"
    CONTENT: ClassVar[str] = "the scales of states, returns and actions"
    RECIPES: ClassVar[str] = "the trajectories, cartpole, pendulum or hopper recipe, or copy that file from one"
    NOUN: ClassVar[str] = "model"
    TRAINING: ClassVar[str] = "on episodes from this one"

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    choices: int | None
    reach: tuple[float, ...]
    context: int
    target: float
    environment: str = ""
    draw: bool = False

    def __post_init__(self) -> None:
        features = self.shape[0] if len(self.shape) == 1 else 0
        fits = len(self.shape) in (1, 3) and len(self.mean) == len(self.std) == features and min(self.shape) > 0
        acts = self.actions > 0 and 0 not in (self.scale, *self.std, *self.reach)
        if not (fits and acts and self.context > 0):
            raise ConfigError(
                f"{self.FILE} is inconsistent (shape {self.shape}, {len(self.mean)} means, {len(self.std)} standard "
                f"deviations, {self.action_text}, context {self.context}); restore it from a copy"
            )

    @classmethod
    def fit(
        cls,
        episodes: Episodes,
        training: np.ndarray,
        context: int,
        *,
        scale: float | None,
        target: float | None,
        choices: int | None,
        environment: str,
        draw: bool,
    ) -> TrajectoryCodec:
        """Compute the scales from the training data; `training` are the indices of its episodes, int64 [E].

        Without a `scale`, returns are divided by the largest one; without a `target`, the target is the best return.
        Continuous actions between -1 and 1 are not scaled. `choices` are the environment's, if it is known.
        """
        steps = step_indices(episodes.starts[training], episodes.ends[training])
        states, actions = episodes.states[steps], episodes.actions[steps]
        scaling = AffineScale() if states.ndim == 4 else AffineScale.by_deviation(states)
        if scale is None:
            scale = float(np.abs(episodes.returns_to_go()[steps]).max()) or 1.0
        return cls(
            tuple(states.shape[1:]),
            scaling.shift,
            scaling.scale,
            scale,
            (choices or int(episodes.actions.max()) + 1) if episodes.discrete else None,
            () if episodes.discrete else tuple(np.maximum(np.abs(actions).max(0), 1.0).astype(float).tolist()),
            context,
            float(episodes.returns[training].max()) if target is None else target,
            environment,
            draw,
        )

    @property
    def actions(self) -> int:
        """Number of logits or values per action."""
        return len(self.reach) if self.choices is None else self.choices

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def image(self) -> bool:
        return len(self.shape) == 3

    @property
    def is_channels_last(self) -> bool:
        """Whether states are images [H, W, C]: grey, RGB, or RGBA."""
        return self.image and self.shape[2] in (1, 3, 4) and self.shape[0] not in (1, 3, 4)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of a state as the model takes it."""
        return (self.shape[2], *self.shape[:2]) if self.is_channels_last else self.shape

    def states(self, states: np.ndarray) -> np.ndarray:
        """Scale states [..., *shape] to float32; images become [..., C, H, W]."""
        if not self.image:
            return AffineScale(self.mean, self.std).encode(states.astype(np.float32, copy=False))
        scaled = states.astype(np.float32) / 255 if states.dtype == np.uint8 else states.astype(np.float32)
        return np.moveaxis(scaled, -1, -3) if self.is_channels_last else scaled

    def check_state(self, observation: Any) -> np.ndarray:
        """An observation as a state, [*shape]. UserError for another size, and for values that are not finite."""
        state = np.asarray(observation)
        if state.dtype.kind not in "fiub" or state.size != math.prod(self.shape) or not np.isfinite(state).all():
            raise UserError(
                f"the observation is {state.dtype} {state.shape}, but this model takes {numbers_text(*self.shape)}; "
                "pass its environment's observation"
            )
        return state.reshape(self.shape)

    def check_action(self, action: Any) -> np.ndarray:
        """An action as the environment takes it: a choice [], or numbers [A]. UserError for anything else."""
        array = np.asarray(action)
        is_choice = self.choices is not None and array.dtype.kind in "iu" and 0 <= int(array.sum()) < self.choices
        fits = array.shape == () and is_choice if self.choices is not None else array.shape == (self.actions,)
        if not fits or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise UserError(
                f"the action {str(action)[:60]} is not one of {self.action_text}; pass those that were taken"
            )
        return array

    def returns(self, returns: np.ndarray) -> np.ndarray:
        return (returns / self.scale).astype(np.float32)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Convert the data's actions to the model's."""
        return actions if self.choices is not None else (actions / np.array(self.reach, np.float32)).astype(np.float32)

    def decode_actions(self, output: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Convert model outputs, [B, A], to the environment's actions: choices [B], or vectors [B, A]. `uniform`, [B],
        are the random numbers from 0 to 1 for sampling.
        """
        if self.choices is None:
            return output * np.array(self.reach, np.float32)
        return sample_choices(output, uniform) if self.draw else output.argmax(-1)


class Actor(Player):
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
        self.limit = self.embed.config.timesteps  # the model has no later ones
        self.head = cast(StepHead, model.heads["actions"])
        self.to_go = np.array(targets, np.float64)
        self.time = 0
        self._rngs = [np.random.default_rng([_RNG_STREAM, seed]) for seed in seeds]
        self._device = device_of(model)
        self._returns: list[Tensor] = []  # for the last K steps, each [B]
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._decoding: tuple[State, ...] | None = None

    @torch.no_grad()
    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        """Return an action per row, int [B] or float [B, A]; `states` are the current states, [B, *shape]."""
        self._append(self._returns, torch.from_numpy(self.codec.returns(self.to_go)))
        self._append(self._states, torch.from_numpy(self.codec.states(states)))
        with evaluation_mode(self.model):
            if self.time < self.codec.context:
                # Encode only the tokens that this step adds, from the cached states.
                batch, device = len(self.to_go), self._device
                inputs = self._inputs(self._no_actions(), self.time, 1)
                if self._decoding is None:
                    x, layout = self.embed(inputs, Layout.full(batch, 1, device=device))
                    num_tokens = self.embed.config.tokens * self.codec.context
                    self._decoding = self.model.stack.initial_states(batch, num_tokens, like=x)
                else:
                    here = Layout.full(batch, 1, self.time, device=device)
                    x, layout = self.embed.step_tokens(self._actions[-1], inputs, here)
                x, self._decoding, _ = self.model.stack(x, layout, self._decoding)
            else:
                self._decoding, count = None, len(self._states)
                actions = torch.stack(self._actions[-(count - 1) :], 1) if count > 1 else self._no_actions()
                inputs = self._inputs(actions, self.time - count + 1, count)
                x = self.model(inputs, self.embed.default_layout(inputs)).x
            output = self.head.predict(x[:, -1]).float().cpu().numpy()
        if self.noise:
            output = output + self.noise * np.stack([rng.standard_normal(output.shape[1:]) for rng in self._rngs])
        action = self.codec.decode_actions(output, np.array([rng.random() for rng in self._rngs]))
        self._append(self._actions, torch.from_numpy(self.codec.encode_actions(action)))
        self.time += 1
        return action

    def observe(self, rows: Sequence[int], actions: np.ndarray, rewards: np.ndarray) -> None:
        """Replace the last actions by those that the environment executed, which its bounds may have changed, and
        subtract the rewards from the return-to-go.
        """
        self._actions[-1] = torch.from_numpy(self.codec.encode_actions(actions)).to(self._device)
        self.to_go = self.to_go - rewards

    def keep_rows(self, kept: np.ndarray) -> None:
        index = torch.from_numpy(kept).to(self._device)
        self.to_go = self.to_go[kept]
        self._rngs = [self._rngs[row] for row in kept.tolist()]
        for buffer in (self._returns, self._states, self._actions):
            buffer[:] = [tensor[index] for tensor in buffer]
        if self._decoding is not None:
            self._decoding = select(self._decoding, index)

    def _append(self, buffer: list[Tensor], new: Tensor) -> None:
        buffer.append(new.to(self._device))
        del buffer[: -self.codec.context]

    def _inputs(self, actions: Tensor, first: int, count: int) -> TrajectoryInputs:
        """Return the timesteps of the last `count` steps, which start at `first`."""
        returns = torch.stack(self._returns[-count:], 1) if self.embed.config.returns else None
        times = torch.arange(first, first + count, device=self._device).expand(len(self.to_go), count)
        return TrajectoryInputs(returns, torch.stack(self._states[-count:], 1), actions, times)

    def _no_actions(self) -> Tensor:
        """No actions, as a tensor."""
        shape = (len(self.to_go), 0) if self.codec.choices is not None else (len(self.to_go), 0, len(self.codec.reach))
        kind = torch.long if self.codec.choices is not None else torch.float32
        return torch.zeros(shape, dtype=kind, device=self._device)


def play(
    model: Transformer,
    codec: TrajectoryCodec,
    envs: VectorEnv,
    target: float,
    seeds: Sequence[int],
    watch: EpisodeWatch | None = None,
) -> PlayedEpisodes:
    """Play an episode from each seed with the target return `target`; `watch` observes each step of the first one."""
    with evaluation_mode(model):
        return play_episodes(lambda group: Actor(model, codec, [target] * len(group), group), envs, seeds, watch)
