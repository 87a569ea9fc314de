"""What is learnt at once: the observation at a step of a demonstration, and the actions from there on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.data.demonstrations import Demonstrations
from headway.data.episodes import steps_within
from headway.data.order import epoch_seed, sample_at
from headway.domains.robotics.codec import Camera, RobotCodec
from headway.models import Chunks, Drawn, Observations
from headway.models.robot import in_order
from headway.train import WHOLE, Shard

_BRIGHTEST = 255.0
_MIDDLE, _HALF = 127.5, 64.0  # of bytes: most pictures then lie within -2 to 2


@dataclass(frozen=True)
class RobotBatch:
    """Observations of B steps and the chunks that follow. `tokens` counts actions that there are, `computed` all."""

    seen: Observations
    chunks: Chunks
    drawn: Drawn
    tokens: int
    computed: int

    def to(self, device: torch.device | str) -> Self:
        if self.chunks.actions.device == torch.device(device):
            return self
        moved = self.seen.to(device), self.chunks.to(device), self.drawn.to(device)
        return type(self)(*moved, self.tokens, self.computed)


class Windows:
    """Windows over the steps of some demonstrations: one begins at each step and has `chunk` actions, of which those
    after the episode's end are not there. A model that reads the last `history` steps is shown those, and learns the
    actions from the oldest of them on.
    """

    def __init__(
        self, data: Demonstrations, numbers: np.ndarray, codec: RobotCodec, chunk: int, history: int = 1
    ) -> None:
        """`numbers` int64 [E] are the episodes."""
        self.data, self.codec, self.chunk, self.history = data, codec, chunk, history
        self.numbers = numbers
        self._starts = np.repeat(data.starts, data.lengths)
        self._ends = np.repeat(data.ends, data.lengths)  # of each step's episode
        self._tasks = np.repeat(data.tasks, data.lengths)

    @cached_property
    def _states(self) -> np.ndarray:
        return self.codec.states(self.data.states)

    @cached_property
    def _actions(self) -> np.ndarray:
        return self.codec.read_actions(self.data.actions)

    @cached_property
    def steps(self) -> list[np.ndarray]:
        """The steps of each task that has any, int64 [N] each."""
        starts, ends, tasks = self.data.starts, self.data.ends, self.data.tasks
        found = []
        for task in np.unique(tasks[self.numbers]):
            own = self.numbers[tasks[self.numbers] == task]
            found.append(steps_within(starts[own], ends[own]))
        return found

    def endless(self, rows: int, seed: int, shard: Shard = WHOLE, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The numbers of batches and their steps, without end: tasks take turns, and of each one the steps come in
        shuffled epochs of its own, so that none is seen more for having longer demonstrations.
        """
        tasks = len(self.steps)
        for number in count(start + shard.rank, shard.world):
            turns, owners = np.divmod(np.arange(number * rows, (number + 1) * rows), tasks)
            steps = np.empty(rows, np.int64)
            for owner, own in enumerate(self.steps):
                here = owners == owner
                steps[here] = own[sample_at(turns[here], len(own), epoch_seed(seed, owner))]
            yield number, steps

    def once(self) -> np.ndarray:
        """The first steps of chunks one after the other, int64 [N]."""
        return steps_within(self.data.starts[self.numbers], self.data.ends[self.numbers], self.chunk)

    def seen(self, steps: np.ndarray) -> Observations:
        """What is seen at steps, int64 [B]; before an episode's first step all was as it is there."""
        lags = reversed(range(self.history))
        return in_order([self._seen(np.maximum(steps - lag, self._starts[steps])) for lag in lags])

    def _seen(self, steps: np.ndarray) -> Observations:
        names = [self.data.names[task] for task in self._tasks[steps].tolist()]
        pictures = {each.name: self.data.cameras[each.name].read(steps) for each in self.codec.cameras}
        return observed(self.codec, self._states[steps], pictures, names)

    def chunks(self, steps: np.ndarray) -> Chunks:
        """The actions from steps on, int64 [B], and before them those of the steps that are seen; beyond an episode's
        ends its first and its last one stand for those that are not.
        """
        places = steps[:, None] + np.arange(1 - self.history, self.chunk)
        first, last = self._starts[steps][:, None], self._ends[steps][:, None] - 1
        actions = self._actions[places.clip(first, last)]
        return Chunks(torch.from_numpy(actions), torch.from_numpy((first <= places) & (places <= last)))


def observed(
    codec: RobotCodec, states: np.ndarray, pictures: dict[str, np.ndarray], names: Sequence[str]
) -> Observations:
    """Scaled states [B, S], pictures of each camera (uint8 [B, H, W, 3]) and the names of B tasks, for a model."""
    images = tuple(pixels(pictures[each.name], each) for each in codec.cameras)
    state = torch.from_numpy(states) if codec.mean else None
    if not codec.words:
        return Observations(state, images)
    words, lengths = codec.texts(names)
    return Observations(state, images, torch.from_numpy(words), torch.from_numpy(lengths))


def pixels(pictures: UInt8[np.ndarray, "B H W 3"], camera: Camera) -> Float[Tensor, "B 3 h w"]:
    """Pictures as numbers around 0, in the size that a model reads."""
    found = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, 1).float()
    if tuple(found.shape[2:]) != tuple(camera.read):
        found = F.interpolate(found, size=camera.read, mode="bilinear", antialias=True)
    if not camera.scale:
        return (found - _MIDDLE) / _HALF
    shift, scale = (torch.tensor(each)[:, None, None] for each in (camera.shift, camera.scale))
    return (found / _BRIGHTEST - shift) / scale
