"""Demonstrations as training data: the observation at a step, and the chunk of actions from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.data import Splits
from headway.data.demonstrations import Demonstrations
from headway.data.episodes import steps_within
from headway.data.order import epoch_seed, sample_at
from headway.domains.robotics.codec import Camera, RobotCodec
from headway.errors import ConfigError
from headway.learn import Shard
from headway.learn.examples import Batch, ByCount, Chance, Contents, Examples, removals
from headway.nn.models import ActConfig, Chunks, ModelConfig, Observations, RobotPolicyConfig
from headway.nn.models.robot import in_order

_BRIGHTEST = 255.0
_MIDDLE, _HALF = 127.5, 64.0  # of bytes: most pixels become -2 to 2
_JUDGED_AT_ONCE = 64  # windows per evaluation batch
_DRAWS = 13  # random stream, independent of others with the same seed


class Demonstrated(Examples):
    """Windows over the steps of demonstrations, divided by `splits`; a training batch has `size` of them, with `noise`
    on scaled states. `model` defines the length of chunks and their random inputs; one that takes the last `history`
    steps gets them, and learns the actions from the oldest of them.
    """

    def __init__(
        self,
        data: Demonstrations,
        splits: Splits,
        codec: RobotCodec,
        model: RobotPolicyConfig,
        size: int,
        seed: int,
        noise: float,
    ) -> None:
        self.data, self.splits, self.codec, self.model = data, splits, codec, model
        self.size, self.seed, self.noise = size, seed, noise
        self._starts = np.repeat(data.starts, data.lengths)
        self._ends = np.repeat(data.ends, data.lengths)  # end of each step's episode
        self._tasks = np.repeat(data.tasks, data.lengths)

    @cached_property
    def _states(self) -> np.ndarray:
        return self.codec.states(self.data.states)

    @cached_property
    def _actions(self) -> np.ndarray:
        return self.codec.read_actions(self.data.actions)

    def of(self, split: str) -> ChunkWindows:
        return ChunkWindows(self, self.splits.rows(split))

    @property
    def remarks(self) -> tuple[str, ...]:
        return removals(self.splits)

    @property
    def final_split(self) -> str:
        return self.splits.final

    def count(self, split: str) -> int:
        """Number of demonstrations; each has many windows."""
        return len(self.splits.rows(split))

    def adapt(self, model: ModelConfig) -> RobotPolicyConfig:
        """Return `model` with the sizes of states, images and actions, and the vocabulary. UserError without training
        data.
        """
        self.splits.rows("train")
        config = cast(RobotPolicyConfig, model)
        cameras = tuple(camera.read for camera in self.codec.cameras)
        try:
            observation = config.observation.fitted(len(self.codec.mean), cameras)
        except ConfigError as error:
            raise ConfigError(f"{error}, by task.size, or set model.observation.images.patch") from error
        sizes: dict[str, Any] = {"observation": observation, "actions": len(self.codec.scale)}
        if isinstance(config, ActConfig):
            return replace(config, **sizes, words=self.codec.symbols)
        if self.codec.symbols:
            raise ConfigError("this model does not take task names, but there are several; set task.text=false")
        return replace(config, **sizes)

    def seen(self, steps: np.ndarray) -> Observations:
        """Return the observations at steps, int64 [B]; an episode's first step is repeated for missing ones."""
        lags = reversed(range(self.model.history))
        return in_order([self._seen(np.maximum(steps - lag, self._starts[steps])) for lag in lags])

    def _seen(self, steps: np.ndarray) -> Observations:
        names = [self.data.names[task] for task in self._tasks[steps].tolist()]
        pictures = {each.name: self.data.cameras[each.name].read(steps) for each in self.codec.cameras}
        return observed(self.codec, self._states[steps], pictures, names)

    def chunks(self, steps: np.ndarray) -> Chunks:
        """Return the actions from steps, int64 [B], including those of the history; an episode's first and last action
        are repeated beyond its ends.
        """
        places = steps[:, None] + np.arange(1 - self.model.history, self.model.chunk)
        first, last = self._starts[steps][:, None], self._ends[steps][:, None] - 1
        actions = self._actions[places.clip(first, last)]
        return Chunks(torch.from_numpy(actions), torch.from_numpy((first <= places) & (places <= last)))

    def contents(self) -> Contents:
        data = self.data
        pictures = [f"{name}: {data.cameras[name].content}" for name in sorted(data.cameras)]
        return {"states and actions": (data.keys(),), "pictures": (pictures,), "tasks": (data.names, data.tasks)}

    def save(self, directory: Path) -> None:
        self.codec.save(directory)


class ChunkWindows:
    """Windows of the demonstrations with these `indices`, int64 [E]. In evaluation they start at `steps`, one chunk
    after the other; in training one starts at each step.
    """

    def __init__(self, examples: Demonstrated, numbers: np.ndarray, limit: int | None = None) -> None:
        self.examples, self.numbers = examples, numbers
        data = examples.data
        self.steps = steps_within(data.starts[numbers], data.ends[numbers], examples.model.chunk)[:limit]

    def __len__(self) -> int:
        return len(self.steps)

    def training(self) -> Turns:
        starts, ends, tasks = self.examples.data.starts, self.examples.data.ends, self.examples.data.tasks[self.numbers]
        each = [self.numbers[tasks == task] for task in np.unique(tasks)]
        steps = tuple(steps_within(starts[own], ends[own]) for own in each)
        return Turns(steps, self.examples.size, self.examples.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self), _JUDGED_AT_ONCE)

    def some(self, limit: int | None) -> ChunkWindows:
        """Return the first `limit` windows."""
        return ChunkWindows(self.examples, self.numbers, limit)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        """Return observations with the batch's random inputs, and the chunks that follow; `tokens` counts valid
        actions, `computed` all. In training, `indices` are steps of the data.
        """
        found = self.examples
        steps, number = (self.steps[numbers], int(numbers[0])) if chance is None else (numbers, chance.number)
        chunks, seen = found.chunks(steps), found.seen(steps)
        random = np.random.default_rng([_DRAWS, found.seed, number])
        drawn = found.model.head.draw(random, len(steps), found.model.horizon, len(found.codec.scale))
        if chance is not None and found.noise and seen.states is not None:
            moved = random.standard_normal(tuple(seen.states.shape), np.float32)
            seen = seen._replace(states=seen.states + found.noise * torch.from_numpy(moved))
        return Batch((seen, drawn), chunks, int(chunks.keep.sum()), chunks.keep.numel())


class Turns(NamedTuple):
    """Batches of `size` steps, from those of each task, int64 [N] each: tasks alternate, and the steps of each come in
    separate shuffled epochs, so that tasks with longer demonstrations do not dominate.
    """

    steps: tuple[np.ndarray, ...]
    size: int
    seed: int

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[Chance, np.ndarray]]:
        for number in count(start + shard.rank, shard.world):
            places = np.arange(number * self.size, (number + 1) * self.size)
            turns, owners = np.divmod(places, len(self.steps))
            steps = np.empty(self.size, np.int64)
            for owner, own in enumerate(self.steps):
                here = owners == owner
                steps[here] = own[sample_at(turns[here], len(own), epoch_seed(self.seed, owner))]
            yield Chance(number, places), steps


def observed(
    codec: RobotCodec, states: np.ndarray, pictures: dict[str, np.ndarray], names: Sequence[str]
) -> Observations:
    """Return model inputs from scaled states [B, S], images of each camera (uint8 [B, H, W, 3]) and B task names."""
    images = tuple(pixels(pictures[each.name], each) for each in codec.cameras)
    state = torch.from_numpy(states) if codec.mean else None
    if not codec.words:
        return Observations(state, images)
    words, lengths = codec.texts(names)
    return Observations(state, images, torch.from_numpy(words), torch.from_numpy(lengths))


def pixels(pictures: UInt8[np.ndarray, "B H W 3"], camera: Camera) -> Float[Tensor, "B 3 h w"]:
    """Scale images to values around 0, in the model's input size."""
    found = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, 1).float()
    if tuple(found.shape[2:]) != tuple(camera.read):
        found = F.interpolate(found, size=camera.read, mode="bilinear", antialias=True)
    if not camera.scale:
        return (found - _MIDDLE) / _HALF
    shift, scale = (torch.tensor(each)[:, None, None] for each in (camera.shift, camera.scale))
    return (found / _BRIGHTEST - shift) / scale
