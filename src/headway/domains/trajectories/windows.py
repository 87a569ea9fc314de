"""Windows of steps for training and judging: what a model reads at once, padded at the left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.data.episodes import Episodes
from headway.domains.trajectories.codec import TrajectoryCodec
from headway.layout import Layout
from headway.models import TrajectoryInputs


@dataclass(frozen=True)
class Following:
    """The states and scaled returns-to-go after each step's action, and which steps have such."""

    states: Float[Tensor, "B K *S"]
    returns: Float[Tensor, "B K"]
    keep: Bool[Tensor, "B K"]


@dataclass(frozen=True)
class TrajectoryBatch:
    """Windows of K steps. `layout` is that of the steps; `tokens` counts them, `computed` the tokens of the model."""

    inputs: TrajectoryInputs
    layout: Layout
    following: Following | None
    tokens: int
    computed: int

    def to(self, device: torch.device | str) -> Self:
        if self.inputs.states.device == torch.device(device):
            return self
        after = self.following
        moved = after and Following(after.states.to(device), after.returns.to(device), after.keep.to(device))
        return type(self)(self.inputs.to(device), self.layout.to(device), moved, self.tokens, self.computed)


class Windows:
    """Windows over the steps of some episodes: window i of training ends at step i, as what is seen at that step of an
    episode that is played.
    """

    def __init__(
        self, episodes: Episodes, numbers: np.ndarray, codec: TrajectoryCodec, *, returns: bool, following: bool
    ) -> None:
        """`numbers` int64 [E] are the episodes; with `returns` a model reads them; `following` adds what comes next."""
        self.episodes, self.codec, self.context = episodes, codec, codec.context
        self.returns, self.following = returns, following
        self.starts, self.ends = episodes.starts[numbers], episodes.ends[numbers]
        self.before = np.concatenate([[0], np.cumsum(self.ends - self.starts)])  # steps before each episode

    @property
    def steps(self) -> int:
        return int(self.before[-1])

    @cached_property
    def _to_go(self) -> np.ndarray:
        return self.codec.returns(self.episodes.returns_to_go())

    def ending(self, steps: np.ndarray) -> TrajectoryBatch:
        """The windows that end at these steps, int [B], counted over all episodes; they reach back to K - 1 steps."""
        owner = np.searchsorted(self.before, steps, side="right") - 1
        last = self.starts[owner] + steps - self.before[owner]
        return self._between(np.maximum(self.starts[owner], last - self.context + 1), last, owner)

    def once(self, size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All steps once: first and last steps and owners of windows one after the other, in groups of `size`."""
        edges = [
            (first, min(first + self.context, end) - 1, owner)
            for owner, (start, end) in enumerate(zip(self.starts.tolist(), self.ends.tolist()))
            for first in range(start, end, self.context)
        ]
        table = np.array(edges, np.int64)
        return [tuple(table[place : place + size].T) for place in range(0, len(table), size)]  # type: ignore[misc]

    def judged(self, edges: tuple[np.ndarray, np.ndarray, np.ndarray]) -> TrajectoryBatch:
        return self._between(*edges)

    def _between(self, first: np.ndarray, last: np.ndarray, owner: np.ndarray) -> TrajectoryBatch:
        """The steps from `first` to `last`, both included and at most K, at the right end of their rows."""
        places = last[:, None] + np.arange(1 - self.context, 1)
        keep = places >= first[:, None]
        places = np.where(keep, places, first[:, None])
        positions = torch.from_numpy(np.where(keep, places - first[:, None], -1))
        inputs = TrajectoryInputs(
            torch.from_numpy(self._to_go[places]) if self.returns else None,
            torch.from_numpy(self.codec.states(self.episodes.states[places])),
            torch.from_numpy(self.codec.read_actions(self.episodes.actions[places])),
            torch.from_numpy(np.where(keep, places - self.starts[owner][:, None], 0)),
        )
        tokens = int(keep.sum())
        layout = Layout(positions, dense=tokens == keep.size)
        after = self._after(places, keep, owner) if self.following else None
        return TrajectoryBatch(inputs, layout, after, tokens, keep.size * (3 if self.returns else 2))

    def _after(self, places: np.ndarray, keep: np.ndarray, owner: np.ndarray) -> Following:
        there = keep & (places + 1 < self.ends[owner][:, None])
        places = np.where(there, places + 1, places)
        states = torch.from_numpy(self.codec.states(self.episodes.states[places]))
        return Following(states, torch.from_numpy(self._to_go[places]), torch.from_numpy(there))
