"""Episodes as training data: windows of steps, padded on the left."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.data import Splits
from headway.data.episodes import Episodes, step_indices
from headway.domains.trajectories.trajectory_player import TrajectoryCodec
from headway.errors import ConfigError
from headway.layout import Layout
from headway.learn.examples import Batch, Contents, EpisodeExamples, FixedSizeBatches, RngKey
from headway.nn.models import (
    ConvolutionsConfig,
    ModelConfig,
    PatchesConfig,
    StateVectorConfig,
    TrajectoryEmbedConfig,
    TrajectoryInputs,
    TransformerConfig,
)

_EVAL_BATCH = 64  # windows per evaluation batch


class NextSteps(NamedTuple):
    """The states and scaled returns-to-go after each step's action, and which steps have a successor."""

    states: Float[Tensor, "B K *S"]
    returns: Float[Tensor, "B K"]
    mask: Bool[Tensor, "B K"]


class Trajectories(EpisodeExamples):
    """Windows over the steps of episodes, divided by `splits`; a training batch has `size` windows. With `returns`, the
    model takes returns as inputs; `following` adds the next step to the targets.
    """

    codec: TrajectoryCodec

    def __init__(
        self,
        episodes: Episodes,
        splits: Splits,
        codec: TrajectoryCodec,
        size: int,
        seed: int,
        *,
        returns: bool,
        following: bool,
    ) -> None:
        self.episodes, self.splits, self.codec, self.size, self.seed = episodes, splits, codec, size, seed
        self.returns, self.following = returns, following
        self.to_go = codec.returns(episodes.returns_to_go())  # scaled, for each step of all episodes

    def of(self, split: str) -> StepWindows:
        return StepWindows(self, self.splits.rows(split))

    def adapt(self, model: ModelConfig) -> TransformerConfig:
        """Return `model` with the sizes of states and actions, timesteps for the longest episode, and without an action
        head of another kind. UserError if there is no training data.
        """
        self.splits.rows("train")
        config = cast(TransformerConfig, model)
        before = cast(TrajectoryEmbedConfig, config.embed)
        states, discrete = before.states, self.codec.choices is not None
        if isinstance(states, StateVectorConfig):
            states = replace(states, size=self.codec.shape[0])
        elif isinstance(states, (PatchesConfig, ConvolutionsConfig)):
            channels, high, wide = self.codec.input_shape
            states = replace(states, channels=channels, size=(high, wide))
        embed = replace(
            before,
            states=states,
            actions=self.codec.actions,
            discrete=discrete,
            returns=self.returns,
            timesteps=max(before.timesteps, int(self.episodes.lengths.max())),
        )
        tokens = self.codec.context * embed.tokens
        if config.context is not None and config.context < tokens:
            raise ConfigError(
                f"task.context={self.codec.context} needs {tokens} tokens, but model.context is {config.context}; "
                "lower task.context, or raise model.context"
            )
        heads = {name: head for name, head in config.heads.items() if name != "actions" or before.discrete == discrete}
        return replace(config, embed=embed, heads=heads)

    def contents(self) -> Contents:
        return contents_of(self.episodes)


def contents_of(episodes: Episodes) -> Contents:
    """Return the content of recorded episodes."""
    return {"states and actions": (episodes.keys(),), "rewards": (episodes.rewards,)}


class StepWindows:
    """Windows of at most K steps from some `episodes`, int64 [E]. In evaluation they are consecutive; in training one
    ends at each step, like the context at that step while playing.
    """

    def __init__(self, examples: Trajectories, episodes: np.ndarray) -> None:
        self.examples, self.episodes = examples, episodes
        self.starts, self.ends = examples.episodes.starts[episodes], examples.episodes.ends[episodes]
        self.cumulative_steps = np.concatenate([[0], np.cumsum(self.ends - self.starts)])  # before each episode

    @cached_property
    def evaluation_windows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first and last step of each evaluation window, and the index of its episode."""
        context = self.examples.codec.context
        owners = np.repeat(np.arange(len(self.episodes)), -(-(self.ends - self.starts) // context))
        first = step_indices(self.starts, self.ends, context)
        return first, np.minimum(first + context, self.ends[owners]) - 1, owners

    def __len__(self) -> int:
        return len(self.evaluation_windows[0])

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(int(self.cumulative_steps[-1]), self.examples.size, self.examples.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), _EVAL_BATCH)

    def limited_to(self, limit: int | None) -> StepWindows:
        """Return the windows of the first `limit` episodes."""
        return StepWindows(self.examples, self.episodes[:limit])

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Return inputs with their layout, the actions, and the following steps if they are targets. In training,
        `indices` are steps, counted over all episodes.
        """
        if rng_key is None:
            return self._between(*(column[indices] for column in self.evaluation_windows))
        owners = np.searchsorted(self.cumulative_steps, indices, side="right") - 1
        last = self.starts[owners] + indices - self.cumulative_steps[owners]
        return self._between(np.maximum(self.starts[owners], last - self.examples.codec.context + 1), last, owners)

    def _between(self, first: np.ndarray, last: np.ndarray, owners: np.ndarray) -> Batch:
        """Return the steps from `first` to `last`, inclusive and at most K, aligned right in their rows."""
        examples, codec, episodes = self.examples, self.examples.codec, self.examples.episodes
        indices = last[:, None] + np.arange(1 - codec.context, 1)
        mask = indices >= first[:, None]
        indices = np.where(mask, indices, first[:, None])
        actions = torch.from_numpy(codec.encode_actions(episodes.actions[indices]))
        inputs = TrajectoryInputs(
            torch.from_numpy(examples.to_go[indices]) if examples.returns else None,
            torch.from_numpy(codec.states(episodes.states[indices])),
            actions,
            torch.from_numpy(np.where(mask, indices - self.starts[owners][:, None], 0)),
        )
        tokens = int(mask.sum())
        layout = Layout(torch.from_numpy(np.where(mask, indices - first[:, None], -1)), dense=tokens == mask.size)
        following = None
        if examples.following:
            has_next = mask & (indices + 1 < self.ends[owners][:, None])
            after = np.where(has_next, indices + 1, indices)
            states = torch.from_numpy(codec.states(episodes.states[after]))
            following = NextSteps(states, torch.from_numpy(examples.to_go[after]), torch.from_numpy(has_next))
        computed = mask.size * (3 if examples.returns else 2)
        return Batch((inputs, layout), (actions, following), tokens, computed)
