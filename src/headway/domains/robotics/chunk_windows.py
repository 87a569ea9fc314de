"""Demonstrations as training data: the observation at a step, and the chunk of actions that starts there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from headway.data import Splits
from headway.data.affine_scale import AffineScale
from headway.data.episodes import Episodes, step_indices
from headway.data.shuffling import epoch_seed, shuffled_indices
from headway.domains.robotics.robot_codec import RobotCodec
from headway.errors import ConfigError
from headway.learn import Shard
from headway.learn.examples import Batch, Contents, EpisodeExamples, FixedSizeBatches, RngKey
from headway.nn.models import ActConfig, Chunks, ModelConfig, Observations, RobotPolicyConfig
from headway.nn.models.robot import stack_steps

_BRIGHTEST = 255.0
_MIDDLE, _HALF = 127.5, 64.0  # maps most pixel values to between -2 and 2
_EVAL_BATCH = 64  # windows per evaluation batch
_RNG_STREAM = 13  # random stream, independent of others with the same seed


class DemonstrationExamples(EpisodeExamples):
    """Windows over the steps of demonstrations, divided by `splits`. A training batch has `size` windows, with `noise`
    added to the scaled states. `model` defines the chunk length and random inputs. A model that takes the last
    `history` steps also learns the actions from the oldest of these on. If `starts` is above 0, half of the windows of
    training start in that many first steps of a demonstration.
    """

    codec: RobotCodec

    def __init__(
        self,
        data: Episodes,
        splits: Splits,
        codec: RobotCodec,
        model: RobotPolicyConfig,
        size: int,
        seed: int,
        noise: float,
        starts: int = 0,
    ) -> None:
        self.data, self.splits, self.codec, self.model = data, splits, codec, model
        self.size, self.seed, self.noise, self.starts = size, seed, noise, starts
        self._starts = np.repeat(data.starts, data.lengths)
        self._ends = np.repeat(data.ends, data.lengths)  # end of each step's episode
        self._tasks = np.repeat(data.tasks, data.lengths)

    def of(self, split: str) -> ChunkWindows:
        return ChunkWindows(self, self.splits.rows(split))

    def adapt(self, model: ModelConfig) -> RobotPolicyConfig:
        """Return `model` with the sizes of states, images and actions, and the vocabulary size. UserError without
        training data.
        """
        self.splits.rows("train")
        config = cast(RobotPolicyConfig, model)
        cameras = tuple(camera.read for camera in self.codec.cameras)
        try:
            observation = config.observation.with_inputs(len(self.codec.mean), cameras)
        except ConfigError as error:
            raise ConfigError(f"{error} with task.size, or set model.observation.images.patch") from error
        sizes: dict[str, Any] = {"observation": observation, "actions": len(self.codec.scale)}
        if isinstance(config, ActConfig):
            unseen = len(self._unseen_scale.shift) if config.state_loss else 0
            return replace(config, **sizes, words=self.codec.vocab_size, unseen=unseen)
        if self.codec.vocab_size:
            raise ConfigError("this model does not take task names, but there are several; set task.text=false")
        return replace(config, **sizes)

    @cached_property
    def _unseen_scale(self) -> AffineScale:
        """The scale of the values that the policy does not take, in training data. ConfigError if it takes all."""
        data, training, used = self.data, self.splits.rows("train"), len(self.codec.mean)
        if used == self.codec.recorded:
            raise ConfigError(
                f"model.state_loss needs state values to predict, but the policy takes all {used}; set task.state"
            )
        return AffineScale.by_deviation(data.states[step_indices(data.starts[training], data.ends[training]), used:])

    def unseen(self, steps: np.ndarray) -> torch.Tensor:
        """The scaled state values at steps, int64 [B], that the policy does not take."""
        return torch.from_numpy(self._unseen_scale.encode(self.data.states[steps, len(self.codec.mean) :]))

    def observations(self, steps: np.ndarray) -> Observations:
        """Return the observations at steps, int64 [B]; missing ones before an episode repeat its first step."""
        history = []
        for lag in reversed(range(self.model.history)):
            past = np.maximum(steps - lag, self._starts[steps])
            names = [self.data.task_names[task] for task in self._tasks[past].tolist()]
            images = {camera.name: self.data.cameras[camera.name].read(past) for camera in self.codec.cameras}
            history.append(make_observations(self.codec, self.data.states[past], images, names))
        return stack_steps(history)

    def chunks(self, steps: np.ndarray) -> Chunks:
        """Return the actions from steps, int64 [B], on, including the history. Beyond the ends of an episode, its first
        and last action are repeated.
        """
        step_indices = steps[:, None] + np.arange(1 - self.model.history, self.model.chunk)
        first, last = self._starts[steps][:, None], self._ends[steps][:, None] - 1
        actions = self.codec.encode_actions(self.data.actions[step_indices.clip(first, last)])
        mask = (first <= step_indices) & (step_indices <= last)
        return Chunks(torch.from_numpy(actions), torch.from_numpy(mask), int(mask.sum()))

    def contents(self) -> Contents:
        data = self.data
        pictures = [f"{name}: {data.cameras[name].content}" for name in sorted(data.cameras)]
        return {"states and actions": (data.keys(),), "pictures": (pictures,), "tasks": (data.task_names, data.tasks)}


class ChunkWindows:
    """Windows from the demonstrations with these `indices`, int64 [E]. In evaluation, they start at `steps`, one chunk
    after another; in training, one starts at each step.
    """

    def __init__(self, examples: DemonstrationExamples, indices: np.ndarray, limit: int | None = None) -> None:
        self.examples, self.indices = examples, indices
        data = examples.data
        self.steps = step_indices(data.starts[indices], data.ends[indices], examples.model.chunk)[:limit]

    def __len__(self) -> int:
        return len(self.steps)

    def training_order(self) -> TaskRotation:
        starts, ends, tasks = self.examples.data.starts, self.examples.data.ends, self.examples.data.tasks[self.indices]
        task_episodes = [self.indices[tasks == task] for task in np.unique(tasks)]
        steps = [step_indices(starts[episodes], ends[episodes]) for episodes in task_episodes]
        if first := self.examples.starts:
            early = np.minimum(starts + first, ends)
            steps += [step_indices(starts[episodes], early[episodes]) for episodes in task_episodes]
        return TaskRotation(tuple(steps), self.examples.size, self.examples.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), _EVAL_BATCH)

    def limited_to(self, limit: int | None) -> ChunkWindows:
        """Return the first `limit` windows."""
        return ChunkWindows(self.examples, self.indices, limit)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Return observations with the batch's random inputs, and the chunks that follow; `tokens` counts valid
        actions, `computed` all. In training, `indices` are steps of the data.
        """
        examples = self.examples
        steps, number = (self.steps[indices], int(indices[0])) if rng_key is None else (indices, rng_key.batch_index)
        chunks, observations = examples.chunks(steps), examples.observations(steps)
        random = np.random.default_rng([_RNG_STREAM, examples.seed, number])
        noise = examples.model.head.sample_noise(random, len(steps), examples.model.horizon, len(examples.codec.scale))
        if rng_key is not None and examples.noise and observations.states is not None:
            state_noise = random.standard_normal(tuple(observations.states.shape), np.float32)
            observations = observations._replace(
                states=observations.states + examples.noise * torch.from_numpy(state_noise)
            )
        if rng_key is not None and isinstance(examples.model, ActConfig) and examples.model.state_loss:
            observations = observations._replace(unseen=examples.unseen(steps))
        return Batch((observations, noise), chunks, int(chunks.mask.sum()), chunks.mask.numel())


class TaskRotation(NamedTuple):
    """Batches of `size` steps from the steps of each task, int64 [N] each. Tasks alternate, and each task's steps come
    in separate shuffled epochs, so that tasks with longer demonstrations do not dominate.
    """

    steps: tuple[np.ndarray, ...]
    size: int
    seed: int

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[RngKey, np.ndarray]]:
        for number in shard.indices(start):
            positions = np.arange(number * self.size, (number + 1) * self.size)
            rounds, owners = np.divmod(positions, len(self.steps))
            steps = np.empty(self.size, np.int64)
            for owner, task_steps in enumerate(self.steps):
                mask = owners == owner
                steps[mask] = task_steps[shuffled_indices(rounds[mask], len(task_steps), epoch_seed(self.seed, owner))]
            yield RngKey(number, positions), steps


def make_observations(
    codec: RobotCodec, states: np.ndarray, pictures: dict[str, np.ndarray], names: Sequence[str]
) -> Observations:
    """Return model inputs from states [B, S], each camera's images (uint8 [B, H, W, 3]) and B task names. Pixels are
    scaled to values around 0, in the model's input size.
    """
    images = []
    for camera in codec.cameras:
        image = torch.from_numpy(np.ascontiguousarray(pictures[camera.name])).movedim(-1, 1).float()
        if tuple(image.shape[2:]) != tuple(camera.read):
            image = F.interpolate(image, size=camera.read, mode="bilinear", antialias=True)
        if camera.scale:
            shift, scale = (torch.tensor(values)[:, None, None] for values in (camera.shift, camera.scale))
            images.append((image / _BRIGHTEST - shift) / scale)
        else:
            images.append((image - _MIDDLE) / _HALF)
    state = torch.from_numpy(codec.states(states)) if codec.mean else None
    if not codec.words:
        return Observations(state, tuple(images))
    sequences = [torch.tensor(codec.word_ids(name)) for name in names]
    lengths = torch.tensor([len(ids) for ids in sequences])
    return Observations(state, tuple(images), pad_sequence(sequences, batch_first=True), lengths)
