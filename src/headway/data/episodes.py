"""Episodes of an agent or a robot in its environment: states, actions, rewards and images, as concatenated arrays."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from headway.data.splits import split_code
from headway.data.video import Frames, JoinedFrames
from headway.errors import UserError


class Episode(NamedTuple):
    """One episode of T steps. `cut` is true if a step limit truncated it, not the environment."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """E episodes with N steps in total.

    `states` float32 [N, S], where S may be 0 if there are cameras, or images: uint8 or float32 [N, H, W, C] or [N, C,
    H, W]; `actions` int64 [N] if discrete, otherwise float32 [N, A]; `rewards` float64 [N], zeros if unknown; `ends`
    int64 [E], the end of each episode; `cut` bool [E], whether it was truncated; `named_splits` uint8 [E], the split
    that its file names; `tasks` int64 [E], its index in `task_names`.

    `environments` are the environment of each task, "" if unknown; `cameras` their images by name; `rate` is in steps
    per second.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    cut: np.ndarray
    named_splits: np.ndarray
    tasks: np.ndarray
    task_names: tuple[str, ...]
    environments: tuple[str, ...]
    cameras: Mapping[str, Frames] = field(default_factory=dict)
    rate: float | None = None

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

    @property
    def environment(self) -> str:
        """The first known environment; "" if there is none."""
        return next(filter(None, self.environments), "")

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

    def keys(self) -> list[str]:
        """A content hash of each episode: equal episodes have equal keys."""
        return self._keys

    @cached_property
    def _keys(self) -> list[str]:
        keys = []
        for start, end in zip(self.starts.tolist(), self.ends.tolist()):
            digest = hashlib.blake2b(digest_size=16)
            for array in (self.states[start:end], self.actions[start:end]):
                digest.update(np.ascontiguousarray(array).tobytes())
            keys.append(digest.hexdigest())
        return keys


def step_indices(starts: np.ndarray, ends: np.ndarray, stride: int = 1) -> np.ndarray:
    """The step indices of episodes, or every `stride`-th from each first step, concatenated: int64 [N]."""
    return np.concatenate([np.arange(start, end, stride) for start, end in zip(starts.tolist(), ends.tolist())])


def task_name(environment: str) -> str:
    """The name of a task from its environment's name: "door open" for metaworld/door-open-v3."""
    return re.sub(r"[-_:]+", " ", re.sub(r"-v\d+$", "", environment.rpartition("/")[2])).strip()


def numbers_text(*shape: int | None) -> str:
    """The shape of a state or an action, for messages: "1 number", "84 x 84 numbers"."""
    return "1 number" if shape == (1,) else f"{' x '.join(map(str, shape))} numbers"


def actions_text(choices: int | None, size: int | None) -> str:
    """The kind of actions, for messages: one of `choices`, or `size` numbers."""
    return numbers_text(size) if choices is None else f"{choices} choice{'' if choices == 1 else 's'}"


def collate_episodes(
    episodes: Sequence[Episode], source: str, split: int = 0, environment: str = "", task: str = ""
) -> Episodes:
    """Check and concatenate the episodes of one source. `task` names them if the environment is unknown, and `split` is
    the code of the split that the source names. A UserError names the first episode that is empty, uneven or has
    another shape.
    """
    if not episodes:
        raise UserError(f"{source} contains no episodes; record some (headway data collect), or remove it")
    for number, episode in enumerate(episodes):
        location = f"{source}, episode {number}"
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
            values, expected = getattr(episode, name), getattr(episodes[0], name).shape[1:]
            if values.dtype.kind not in "fiub":
                raise UserError(f"{location}: {name} have the dtype {values.dtype}; save numbers")
            check_finite(values, np.array([steps]), name, location)
            if values.shape[1:] != expected:
                raise UserError(
                    f"{location} has {name} of shape {values.shape[1:]}, but episode 0 has {expected}; pass episodes "
                    "from one environment"
                )
    states = np.concatenate([episode.states for episode in episodes])
    if states.ndim != 4:
        states = states.reshape(len(states), -1).astype(np.float32)
    elif states.dtype != np.uint8:
        states = states.astype(np.float32)
    actions = np.concatenate([episode.actions for episode in episodes])
    flat = actions.reshape(len(actions), -1)
    if actions.dtype.kind == "f":
        actions = flat.astype(np.float32)
    elif flat.shape[1] != 1:
        raise UserError(
            f"{source} has actions of {flat.shape[1]} integers per step; save one integer per step, or floats"
        )
    elif int(flat.min()) < 0:
        raise UserError(f"{source} has the action {int(flat.min())}; number actions from 0")
    else:
        actions = flat[:, 0].astype(np.int64)
    return Episodes(
        states=states,
        actions=actions,
        rewards=np.concatenate([np.asarray(episode.rewards, np.float64) for episode in episodes]),
        ends=np.cumsum([len(episode.rewards) for episode in episodes], dtype=np.int64),
        cut=np.array([episode.cut for episode in episodes], bool),
        named_splits=np.full(len(episodes), split, np.uint8),
        tasks=np.zeros(len(episodes), np.int64),
        task_names=(task_name(environment) or task,),
        environments=(environment,),
    )


def check_finite(values: np.ndarray, ends: np.ndarray, name: str, source: str) -> None:
    """UserError for the first value in [N, ...] that is not finite, with its step and, of several, its episode."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    row, *position = np.argwhere(~np.isfinite(values))[0].tolist()
    episode = int(np.searchsorted(ends, row, side="right"))
    step = row - (int(ends[episode - 1]) if episode else 0)
    location = f"{source}, episode {episode}" if len(ends) > 1 else source
    raise UserError(
        f"{location}, step {step}: {name} contain {values[(row, *position)]}, which is not a finite number; remove the "
        "episode"
    )


def concatenate_episodes(parts: Sequence[Episodes], sources: Sequence[str], one_environment: bool = True) -> Episodes:
    """Concatenate the episodes of several sources; tasks with the same name are one task. UserError if the sources do
    not match, or if they are from several environments though they must be from one.
    """
    first = parts[0]
    for part, source in zip(parts, sources):
        _check_compatible(first, part, sources[0], source, one_environment)
    names = list(dict.fromkeys(name for part in parts for name in part.task_names))
    environments = {
        name: environment
        for part in reversed(parts)
        for name, environment in zip(part.task_names, part.environments)
        if environment
    }
    task_indices = [np.array([names.index(name) for name in part.task_names], np.int64)[part.tasks] for part in parts]
    offsets = np.cumsum([0, *(len(part.actions) for part in parts[:-1])])
    named_splits = np.concatenate([part.named_splits for part in parts])
    if not (named_splits <= split_code("train")).any():  # split names count only if something is left to train on
        named_splits = np.zeros_like(named_splits)
    return Episodes(
        states=np.concatenate([part.states for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        rewards=np.concatenate([part.rewards for part in parts]),
        ends=np.concatenate([part.ends + offset for part, offset in zip(parts, offsets)]),
        cut=np.concatenate([part.cut for part in parts]),
        named_splits=named_splits,
        tasks=np.concatenate(task_indices),
        task_names=tuple(names),
        environments=tuple(environments.get(name, "") for name in names),
        cameras={camera: JoinedFrames([part.cameras[camera] for part in parts]) for camera in first.cameras},
        rate=next((part.rate for part in parts if part.rate), None),
    )


def _check_compatible(first: Episodes, part: Episodes, first_source: str, source: str, one_environment: bool) -> None:
    def describe(episodes: Episodes) -> dict[str, str]:
        listing = ", ".join(
            f"{name} ({' x '.join(map(str, frames.size))})" for name, frames in episodes.cameras.items()
        )
        states, actions = (numbers_text(*(array.shape[1:] or (1,))) for array in (episodes.states, episodes.actions))
        return {
            "states": f"states of {states}{' as bytes' if episodes.states.dtype == np.uint8 else ''}",
            "actions": "discrete actions" if episodes.discrete else f"actions of {actions}",
            "cameras": f"the cameras {listing}" if listing else "no cameras",
            "rate": f"{episodes.rate:g} steps per second" if episodes.rate else "",
        }

    for ours, theirs in zip(describe(first).values(), describe(part).values()):
        if ours != theirs and ours and theirs:
            raise UserError(
                f"{source} has {theirs}, but {first_source} has {ours}; pass data from one environment or robot"
            )
    ours, theirs = (episodes.environment.partition("-v")[0] for episodes in (first, part))
    if one_environment and ours and theirs and ours != theirs:
        raise UserError(
            f"{source} was recorded in {part.environment}, but {first_source} in {first.environment}; "
            "pass data from one environment"
        )
