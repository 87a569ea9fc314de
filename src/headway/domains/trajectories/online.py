"""A decision transformer goes on learning, from episodes that it plays itself (Zheng, Zhang and Grover 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.data import Splits
from headway.data.episodes import Episode, Episodes, joined, together
from headway.domains.trajectories.acting import Actor
from headway.domains.trajectories.codec import TrajectoryCodec
from headway.domains.trajectories.windows import StepWindows, Trajectories, contents_of
from headway.environments import SEEDS, Copies, played
from headway.errors import ConfigError, UserError
from headway.generate.prompts import evaluating
from headway.learn.examples import WHOLE, Batch, Chance, Contents, Explored, Shard
from headway.nn.models import Transformer

_STARTS, _ORDER = 16, 17  # so that what is drawn has nothing to do with other draws from the same seed


@dataclass(frozen=True)
class OnlineConfig:
    """Zheng, Zhang and Grover 2022, algorithm 1: after `after` batches of recorded episodes, `episodes` are played
    before each `every` batches, which are drawn from a buffer of at most `keep` episodes.

    What is asked for in play is the return `target`; without one it lies above the best return of the buffer, by
    `above` times the distance from the buffer's mean to its best. Choices are drawn by their probabilities; numbers get
    normal noise of the standard deviation `noise`, in units of their largest value in the recorded episodes or 1.

    The buffer begins with the best of the recorded episodes. Where it is full, recorded ones leave it first, the worst
    before the others, then its own: the `oldest`, or the `worst` of all.
    """

    episodes: int = 0  # played at a time; 0: none, only recorded episodes are learnt from
    every: int = 100  # batches from one time to the next
    after: int = 0  # batches of recorded episodes before the first time
    keep: int = 100  # episodes that are learnt from at once
    target: float | None = None  # return that is asked for in play; none: above the best so far
    above: float = 0.5  # how far above, in units of the distance from the mean to the best
    noise: float = 0.2  # standard deviation of the noise of actions that are numbers
    drop: Literal["oldest", "worst"] = "oldest"  # what leaves a full buffer

    def __post_init__(self) -> None:
        for name, least in (("episodes", 0), ("after", 0), ("every", 1), ("keep", 1), ("above", 0), ("noise", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"task.online.{name} is {getattr(self, name)}; give {least} or more")
        if self.target is not None and not math.isfinite(self.target):
            raise ConfigError(f"task.online.target is {self.target}; give a return, or none")


class Diary:
    """An actor in B episodes, whose steps are written down; `episodes` are those of all B, as far as they came."""

    def __init__(self, actor: Actor, episodes: int) -> None:
        self.actor = actor
        self._rows = np.arange(episodes)
        self._steps: list[list[tuple[np.ndarray, Any, float]]] = [[] for _ in range(episodes)]

    @property
    def limit(self) -> int:
        return self.actor.limit

    @property
    def episodes(self) -> list[Episode]:
        each = (map(np.array, zip(*steps)) for steps in self._steps)
        return [Episode(states, actions, rewards) for states, actions, rewards in each]

    def act(self, states: np.ndarray) -> np.ndarray:
        self._states, self._actions = states, self.actor.act(states)
        return self._actions

    def took(self, actions: np.ndarray) -> None:
        self._actions = actions
        self.actor.took(actions)

    def take(self, rewards: np.ndarray) -> None:
        for row, state, action, reward in zip(self._rows.tolist(), self._states, self._actions, rewards.tolist()):
            self._steps[row].append((state, action, reward))
        self.actor.take(rewards)

    def select(self, rows: np.ndarray) -> None:
        self._rows = self._rows[rows]
        self.actor.select(rows)


class OwnEpisodes(Trajectories, Explored):
    """Windows over recorded episodes and over those that the learning model plays in `copies` of its environment.

    Episode e of its own starts from a seed that is a function of e, and a batch is drawn by its number, so that all
    hangs on the weights and the buffer alone. With `follow` evaluations ask for the best return of the buffer.
    """

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
        online: OnlineConfig,
        copies: Copies,
        follow: bool,
    ) -> None:
        super().__init__(episodes, splits, codec, size, seed, returns=returns, following=following)
        self.recorded, self.online, self.copies, self.follow = episodes, online, copies, follow
        self._splits, self._given = splits, splits.sides["train"]
        self.curve: list[tuple[float, float, float]] = []  # of each own episode: what was asked for, return, steps
        self._kept: list[int] = []  # recorded episodes of the buffer, from the worst to the best
        self._own: list[Episode] = []  # those of its own in the buffer, from the oldest to the newest

    def contents(self) -> Contents:
        return {"environments": ([self.copies.name],), **contents_of(self.recorded)}

    @property
    def splits_read(self) -> Splits:
        return self._splits

    @property
    def steps(self) -> int:
        """Those of all episodes of its own."""
        return int(sum(steps for *_, steps in self.curve))

    @property
    def period(self) -> int:
        return self.online.every

    def explore(self, model: nn.Module) -> None:
        self.model = cast(Transformer, model)
        order = np.argsort(self.recorded.returns[self._given], kind="stable")
        self.curve, self._kept, self._own = [], self._given[order].tolist(), []
        self._put()

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[Batch]:
        """Of training those of recorded episodes, then those drawn from the buffer, each step as probable as any other.
        UserError for several processes, and where an environment fails.
        """
        if split != "train":
            yield from super().batches(split, shard, start)
            return
        if shard.world > 1:
            raise UserError(f"{shard.world} processes cannot share one model's episodes; train it with one")
        after, every = self.online.after, self.online.every
        yield from islice(super().batches("train", shard, start), max(0, after - start))
        for number in count(max(start, after)):
            if (number - after) % every == 0:
                self._play()
            windows = cast(StepWindows, self.of("train"))
            chance = np.random.default_rng([_ORDER, self.seed, number])
            steps = chance.integers(int(windows.before[-1]), size=self.size)
            yield windows.take(steps, Chance(number, np.arange(number * self.size, (number + 1) * self.size)))

    def explored(self) -> dict[str, Tensor]:
        state = {
            "kept": torch.tensor(self._kept, dtype=torch.long),
            "curve": torch.tensor(self.curve, dtype=torch.float64),
        }
        if self._own:
            state["lengths"] = torch.tensor([len(episode.rewards) for episode in self._own])
            for name in ("states", "actions", "rewards"):
                parts = [getattr(episode, name) for episode in self._own]
                state[name] = torch.from_numpy(np.concatenate(parts))
        return {name: tensor for name, tensor in state.items() if tensor.numel()}  # files hold no empty ones

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        self._kept = state["kept"].tolist() if "kept" in state else []
        if max(self._kept, default=-1) >= len(self.recorded):
            raise UserError(
                f"the checkpoint is of {max(self._kept) + 1:,} recorded episodes at least, and the data hold "
                f"{len(self.recorded):,}; resume it with its own data"
            )
        self.curve = [tuple(line) for line in state["curve"].tolist()] if "curve" in state else []  # type: ignore[misc]
        self._own = []
        if "lengths" in state:
            ends = np.cumsum(state["lengths"].numpy())[:-1]
            parts = (np.split(state[name].numpy().copy(), ends) for name in ("states", "actions", "rewards"))
            self._own = [Episode(*arrays) for arrays in zip(*parts)]
        self._put()

    def _play(self) -> None:
        """Episodes of the model as it is now, into the buffer."""
        online, codec, first = self.online, replace(self.codec, draw=True), len(self.curve)
        self._drop()
        asked, noise = self._asked(), 0.0 if codec.choices is not None else online.noise
        diaries: list[Diary] = []

        def player(seeds: Sequence[int]) -> Diary:
            diaries.append(Diary(Actor(self.model, codec, [asked] * len(seeds), seeds, noise), len(seeds)))
            return diaries[-1]

        with evaluating(self.model):
            played(player, self.copies, [self._start(first + number) for number in range(online.episodes)])
        new = [episode for diary in diaries for episode in diary.episodes]
        self.curve += [(asked, float(episode.rewards.sum()), float(len(episode.rewards))) for episode in new]
        self._own += new
        self._drop()
        self._put()

    def _start(self, episode: int) -> int:
        """The seed of an episode, which no judged one has."""
        return int(np.random.default_rng([_STARTS, self.seed, episode]).integers(SEEDS["validation"]))

    def _asked(self) -> float:
        """The return that is asked for in play."""
        if self.online.target is not None:
            return self.online.target
        returns = self._returns()
        return float(returns.max() + self.online.above * (returns.max() - returns.mean()))

    def _returns(self) -> np.ndarray:
        """Those of the episodes in the buffer."""
        own = [float(episode.rewards.sum()) for episode in self._own]
        return np.concatenate([self.recorded.returns[self._kept], own])

    def _drop(self) -> None:
        """What is too much for the buffer."""
        excess = max(0, len(self._kept) + len(self._own) - self.online.keep)
        if self.online.drop == "worst":
            worst = set(np.argsort(self._returns(), kind="stable")[:excess].tolist())
            known = len(self._kept)
            self._own = [episode for place, episode in enumerate(self._own) if place + known not in worst]
            self._kept = [number for place, number in enumerate(self._kept) if place not in worst]
        else:
            self._own = self._own[max(0, excess - len(self._kept)) :]
            self._kept = self._kept[excess:]

    def _put(self) -> None:
        """Let batches be of the buffer."""
        parts, name = [self.recorded], self.recorded.environment
        if self._own:
            parts.append(together(self._own, f"the environment {self.copies.name!r}", environment=name))
        self.episodes = joined(parts, ["the data", f"the environment {self.copies.name!r}"])
        own = len(self.recorded) + np.arange(len(self._own))
        train = np.concatenate([np.sort(np.array(self._kept, np.int64)), own])
        self.splits = self.splits._replace(sides={**self.splits.sides, "train": train})
        self.to_go = self.codec.returns(self.episodes.returns_to_go())
        if self.follow:
            self.codec = replace(self.codec, target=float(self._returns().max()))
