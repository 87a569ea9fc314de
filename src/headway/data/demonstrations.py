"""Demonstrations of robots: states, actions and pictures of cameras, as arrays that lie one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headway.data.episodes import digest


class Frames(Protocol):
    """The pictures of one camera, of all steps one after the other. `size` is height and width."""

    size: tuple[int, int]

    def __len__(self) -> int: ...
    def read(self, steps: np.ndarray) -> np.ndarray:
        """The pictures of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Demonstrations:
    """E episodes of N steps in all: what a robot saw and did.

    `states` float32 [N, S], where S may be 0 if there are cameras; `actions` float32 [N, A]; `ends` int64 [E], where
    each episode ends; `cameras` by name, {} for states alone; `tasks` int64 [E], the number of each episode's task in
    `names`, which say it as text; `named` uint8 [E], the split that a file's name states; `environments`, of each task,
    where it can be played, "" where nothing says; `rate` in steps a second.
    """

    states: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    cameras: Mapping[str, Frames]
    tasks: np.ndarray
    names: tuple[str, ...]
    named: np.ndarray
    environments: tuple[str, ...]
    rate: float | None

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> np.ndarray:
        """Where each episode starts, int64 [E]."""
        return np.concatenate([[0], self.ends[:-1]])

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, int64 [E]."""
        return self.ends - self.starts

    def keys(self) -> list[str]:
        """A name of each episode by what it holds: equal ones have equal names."""
        pairs = zip(self.starts.tolist(), self.ends.tolist())
        return [digest(self.states[start:end], self.actions[start:end]) for start, end in pairs]
