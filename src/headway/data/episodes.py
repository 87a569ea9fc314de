"""Episodes of an agent in its environment: states, actions and rewards, as concatenated arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from headway.errors import UserError


class Episode(NamedTuple):
    """One episode of T steps. `cut` is true if a step limit truncated it, not the environment."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    cut: bool = False


class RecordedEpisodes:
    """Base class for E recorded episodes: arrays of their steps, concatenated, and the end of each episode."""

    states: np.ndarray
    actions: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> np.ndarray:
        """The first step of each episode, int64 [E]."""
        return np.concatenate([[0], self.ends[:-1]])

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, int64 [E]."""
        return self.ends - self.starts

    def keys(self) -> list[str]:
        """A content hash of each episode: equal episodes have equal keys."""
        return self._keys

    @cached_property
    def _keys(self) -> list[str]:
        pairs = zip(self.starts.tolist(), self.ends.tolist())
        return [_digest(self.states[start:end], self.actions[start:end]) for start, end in pairs]


@dataclass(frozen=True)
class Episodes(RecordedEpisodes):
    """E episodes with N steps in total.

    `states` float32 [N, S], or images: uint8 or float32 [N, H, W, C] or [N, C, H, W]; `actions` int64 [N] if discrete,
    otherwise float32 [N, A]; `rewards` float64 [N]; `ends` int64 [E], the end of each episode; `cut` bool [E], whether
    it was truncated; `named_splits` uint8 [E], the split that the file's name states; `environment` is the name of the
    environment, "" if unknown.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    cut: np.ndarray
    named_splits: np.ndarray
    environment: str = ""

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return self.actions.dtype == np.int64

    @property
    def returns(self) -> np.ndarray:
        """The sum of each episode's rewards, float64 [E]."""
        return np.add.reduceat(self.rewards, self.starts)

    def returns_to_go(self) -> np.ndarray:
        """The sum of the rewards from each step to the end of its episode, float64 [N]."""
        returns = np.empty_like(self.rewards)
        for start, end in zip(self.starts.tolist(), self.ends.tolist()):
            returns[start:end] = self.rewards[start:end][::-1].cumsum()[::-1]
        return returns


def _digest(*arrays: np.ndarray) -> str:
    """A content hash of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def collate_episodes(episodes: Sequence[Episode], source: str, split_code: int = 0, environment: str = "") -> Episodes:
    """Check and concatenate the episodes of one source. A UserError names the first that is empty, uneven or has
    another shape.
    """
    if not episodes:
        raise UserError(f"{source} contains no episodes; record some (headway data collect), or remove it")
    for number, episode in enumerate(episodes):
        _check_episode(episode, f"{source}, episode {number}")
        _check_same_shape(episode, episodes[0], f"{source}, episode {number}")
    lengths = [len(episode.rewards) for episode in episodes]
    return Episodes(
        _states(np.concatenate([episode.states for episode in episodes])),
        _actions(np.concatenate([episode.actions for episode in episodes]), source),
        np.concatenate([np.asarray(episode.rewards, np.float64) for episode in episodes]),
        np.cumsum(lengths, dtype=np.int64),
        np.array([episode.cut for episode in episodes], bool),
        np.full(len(episodes), split_code, np.uint8),
        environment,
    )


def step_indices(starts: np.ndarray, ends: np.ndarray, stride: int = 1) -> np.ndarray:
    """The step indices of episodes, or every `stride`-th from each first step, concatenated: int64 [N]."""
    return np.concatenate([np.arange(start, end, stride) for start, end in zip(starts.tolist(), ends.tolist())])


def concatenate_episodes(parts: Sequence[Episodes], sources: Sequence[str]) -> Episodes:
    """Concatenate the episodes of several sources; UserError if they do not match."""
    first = parts[0]
    for part, source in zip(parts, sources):
        for field in ("states", "actions"):
            reference, candidate = getattr(first, field), getattr(part, field)
            if reference.shape[1:] != candidate.shape[1:] or reference.dtype != candidate.dtype:
                raise UserError(
                    f"{source} has {field} of {describe_shape(candidate)}, but {sources[0]} has "
                    f"{describe_shape(reference)}; "
                    "pass files from one environment"
                )
        reference, candidate = (recording.environment.partition("-v")[0] for recording in (first, part))
        if reference and candidate and reference != candidate:
            raise UserError(
                f"{source} was recorded in {part.environment}, but {sources[0]} in {first.environment}; "
                "pass files from one environment"
            )
    offsets = np.cumsum([0, *(len(part.rewards) for part in parts[:-1])])
    return Episodes(
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets)]),
        np.concatenate([part.cut for part in parts]),
        np.concatenate([part.named_splits for part in parts]),
        next((part.environment for part in parts if part.environment), ""),
    )


def describe_shape(array: np.ndarray) -> str:
    """The shape of one step of an array, for messages."""
    if array.dtype == np.int64 and array.ndim == 1:
        return "discrete values"
    sizes = " x ".join(map(str, array.shape[1:])) or "1"
    return f"{sizes} numbers"


def _check_episode(episode: Episode, location: str) -> None:
    steps = len(episode.rewards)
    if steps == 0:
        raise UserError(f"{location} has 0 steps; remove it")
    for name in ("states", "actions"):
        count = len(getattr(episode, name))
        if count != steps:
            raise UserError(f"{location} has {steps} rewards but {count} {name}; save one of each per step")
    if episode.rewards.ndim != 1:
        raise UserError(f"{location} has rewards of shape {episode.rewards.shape}; save one number per step")
    for name in ("states", "actions", "rewards"):
        values = getattr(episode, name)
        if values.dtype.kind not in "fiub":
            raise UserError(f"{location}: {name} have the dtype {values.dtype}; save numbers")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            step = int(np.argwhere(~np.isfinite(values))[0][0])
            invalid = values[step].ravel()[~np.isfinite(values[step].ravel())][0]
            raise UserError(
                f"{location}, step {step}: {name} contain {invalid}, which is not a finite number; remove the episode"
            )


def _check_same_shape(episode: Episode, first: Episode, location: str) -> None:
    for name in ("states", "actions"):
        shape, expected = getattr(episode, name).shape[1:], getattr(first, name).shape[1:]
        if shape != expected:
            raise UserError(
                f"{location} has {name} of shape {shape}, but episode 0 has {expected}; pass episodes from one "
                "environment"
            )


def _states(states: np.ndarray) -> np.ndarray:
    """Vectors as float32; images stay bytes."""
    if states.ndim == 4:
        return states if states.dtype == np.uint8 else states.astype(np.float32)
    return states.reshape(len(states), -1).astype(np.float32)


def _actions(actions: np.ndarray, source: str) -> np.ndarray:
    """A single integer column is discrete; anything else is real-valued."""
    flat = actions.reshape(len(actions), -1)
    if actions.dtype.kind == "f":
        return flat.astype(np.float32)
    if flat.shape[1] != 1:
        raise UserError(
            f"{source} has actions of {flat.shape[1]} integers per step; save one integer per step, or floats"
        )
    if int(flat.min()) < 0:
        raise UserError(f"{source} has the action {int(flat.min())}; number actions from 0")
    return flat[:, 0].astype(np.int64)
