"""Online training of a decision transformer on episodes that it plays itself (Zheng, Zhang and Grover 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.data import Splits
from headway.data.episodes import Episode, Episodes, collate_episodes, concatenate_episodes
from headway.domains.trajectories.step_windows import StepWindows, Trajectories, contents_of
from headway.domains.trajectories.trajectory_player import Actor, TrajectoryCodec
from headway.environments.rollouts import play_episodes, training_seed
from headway.environments.vector_env import VectorEnv
from headway.errors import ConfigError, UserError
from headway.learn.examples import FULL_SHARD, Batch, Contents, OnPolicyExamples, RngKey, Shard
from headway.nn.models import Transformer, evaluation_mode

_STARTS, _ORDER = 16, 17  # random streams, independent of others with the same seed


@dataclass(frozen=True)
class OnlineConfig:
    """Zheng, Zhang and Grover 2022, algorithm 1: after `after` batches of recorded episodes, `episodes` episodes are
    played every `every` batches, and batches are sampled from a buffer of at most `keep` episodes.

    The target return while playing is `target` or, if unset, the best return in the buffer plus `above` times the
    difference between the buffer's best and mean. Choices are sampled; continuous actions get normal noise with the
    standard deviation `noise`, in units of their largest value in the recorded episodes or 1.

    The buffer starts with the best recorded episodes. When it is full, recorded episodes are dropped first, worst
    first, and then the model's own: the `oldest`, or the `worst` of all.
    """

    episodes: int = 0  # episodes to play each time; 0: learn only from recorded episodes
    every: int = 100  # batches between playing
    after: int = 0  # batches of recorded episodes before playing starts
    keep: int = 100  # capacity of the buffer in episodes
    target: float | None = None  # target return while playing; none: above the best so far
    above: float = 0.5  # how far above, in units of the difference between best and mean
    noise: float = 0.2  # standard deviation of the noise on continuous actions
    drop: Literal["oldest", "worst"] = "oldest"  # which own episodes a full buffer drops

    def __post_init__(self) -> None:
        for name, minimum in (("episodes", 0), ("after", 0), ("every", 1), ("keep", 1), ("above", 0), ("noise", 0)):
            if not minimum <= getattr(self, name) < math.inf:
                raise ConfigError(f"task.online.{name} is {getattr(self, name)}; choose {minimum} or more")
        if self.target is not None and not math.isfinite(self.target):
            raise ConfigError(f"task.online.target is {self.target}; choose a finite return, or none")


class OnlineEpisodes(Trajectories, OnPolicyExamples):
    """Windows over recorded episodes and those that the learning model plays in `envs`.

    The seed of own episode e is a function of e, and a batch is sampled by its index, so everything depends only on the
    weights and the buffer. With `follow`, evaluations use the best return in the buffer as the target.
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
        envs: VectorEnv,
        follow: bool,
    ) -> None:
        super().__init__(episodes, splits, codec, size, seed, returns=returns, following=following)
        self.recorded, self.online, self.envs, self.follow = episodes, online, envs, follow
        self._splits, self._recorded_training = splits, splits.indices["train"]
        self.curve: list[tuple[float, float, float]] = []  # for each own episode: target return, return, steps
        self._recorded_buffer: list[int] = []  # recorded episodes in the buffer, from worst to best
        self._own_buffer: list[Episode] = []  # the model's own episodes in the buffer, from oldest to newest

    def contents(self) -> Contents:
        return {"environments": ([self.envs.name],), **contents_of(self.recorded)}

    @property
    def data_splits(self) -> Splits:
        return self._splits

    @property
    def steps(self) -> int:
        """Steps in all of the model's own episodes."""
        return int(sum(steps for *_, steps in self.curve))

    @property
    def rollout_batches(self) -> int:
        return self.online.every

    def start_exploring(self, model: nn.Module) -> None:
        self.model = cast(Transformer, model)
        order = np.argsort(self.recorded.returns[self._recorded_training], kind="stable")
        self.curve, self._recorded_buffer, self._own_buffer = [], self._recorded_training[order].tolist(), []
        self._update_examples()

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        """Yield training batches, for one process, first from recorded episodes, then sampled uniformly from the steps
        in the buffer. UserError if an environment fails.
        """
        if split != "train":
            yield from super().batches(split, shard, start)
            return
        after, every = self.online.after, self.online.every
        yield from islice(super().batches("train", shard, start), max(0, after - start))
        for number in count(max(start, after)):
            if (number - after) % every == 0:
                self._play()
            windows = cast(StepWindows, self.of("train"))
            rng = np.random.default_rng([_ORDER, self.seed, number])
            steps = rng.integers(int(windows.cumulative_steps[-1]), size=self.size)
            yield windows.take(steps, RngKey(number, np.arange(number * self.size, (number + 1) * self.size)))

    def exploration_state(self) -> dict[str, Tensor]:
        state = {
            "kept": torch.tensor(self._recorded_buffer, dtype=torch.long),
            "curve": torch.tensor(self.curve, dtype=torch.float64),
        }
        if self._own_buffer:
            state["lengths"] = torch.tensor([len(episode.rewards) for episode in self._own_buffer])
            for name in ("states", "actions", "rewards"):
                parts = [getattr(episode, name) for episode in self._own_buffer]
                state[name] = torch.from_numpy(np.concatenate(parts))
        return {name: tensor for name, tensor in state.items() if tensor.numel()}  # files cannot store empty tensors

    def load_exploration_state(self, state: Mapping[str, Tensor]) -> None:
        self._recorded_buffer = state["kept"].tolist() if "kept" in state else []
        if max(self._recorded_buffer, default=-1) >= len(self.recorded):
            raise UserError(
                f"the checkpoint has at least {max(self._recorded_buffer) + 1:,} recorded episodes, but the data have "
                f"{len(self.recorded):,}; resume with the original data"
            )
        self.curve = [tuple(line) for line in state["curve"].tolist()] if "curve" in state else []  # type: ignore[misc]
        self._own_buffer = []
        if "lengths" in state:
            boundaries = np.cumsum(state["lengths"].numpy())[:-1]
            parts = (np.split(state[name].numpy().copy(), boundaries) for name in ("states", "actions", "rewards"))
            self._own_buffer = [Episode(*arrays) for arrays in zip(*parts)]
        self._update_examples()

    def _play(self) -> None:
        """Play episodes with the current model, and add them to the buffer."""
        online, codec, first = self.online, replace(self.codec, draw=True), len(self.curve)
        self._trim_buffer()
        target, noise = online.target, 0.0 if codec.choices is not None else online.noise
        if target is None:
            returns = self._returns()
            target = float(returns.max() + online.above * (returns.max() - returns.mean()))
        episodes: dict[int, Episode] = {}
        seeds = [training_seed(_STARTS, self.seed, first + number) for number in range(online.episodes)]
        with evaluation_mode(self.model):
            play_episodes(
                lambda group: Actor(self.model, codec, [target] * len(group), group, noise),
                self.envs,
                seeds,
                record=episodes.__setitem__,
            )
        new = [episodes[number] for number in sorted(episodes)]
        self.curve += [(target, float(episode.rewards.sum()), float(len(episode.rewards))) for episode in new]
        self._own_buffer += new
        self._trim_buffer()
        self._update_examples()

    def _returns(self) -> np.ndarray:
        """Return the returns of the episodes in the buffer."""
        own_returns = [float(episode.rewards.sum()) for episode in self._own_buffer]
        return np.concatenate([self.recorded.returns[self._recorded_buffer], own_returns])

    def _trim_buffer(self) -> None:
        """Drop episodes that exceed the buffer's capacity."""
        excess = max(0, len(self._recorded_buffer) + len(self._own_buffer) - self.online.keep)
        if self.online.drop == "worst":
            worst = set(np.argsort(self._returns(), kind="stable")[:excess].tolist())
            known = len(self._recorded_buffer)
            self._own_buffer = [episode for index, episode in enumerate(self._own_buffer) if index + known not in worst]
            self._recorded_buffer = [number for index, number in enumerate(self._recorded_buffer) if index not in worst]
        else:
            self._own_buffer = self._own_buffer[max(0, excess - len(self._recorded_buffer)) :]
            self._recorded_buffer = self._recorded_buffer[excess:]

    def _update_examples(self) -> None:
        """Use the buffer for training batches."""
        parts, name = [self.recorded], self.recorded.environment
        if self._own_buffer:
            parts.append(collate_episodes(self._own_buffer, f"the environment {self.envs.name!r}", environment=name))
        self.episodes = concatenate_episodes(parts, ["the data", f"the environment {self.envs.name!r}"])
        own_indices = len(self.recorded) + np.arange(len(self._own_buffer))
        train = np.concatenate([np.sort(np.array(self._recorded_buffer, np.int64)), own_indices])
        self.splits = self.splits._replace(indices={**self.splits.indices, "train": train})
        self.to_go = self.codec.returns(self.episodes.returns_to_go())
        if self.follow:
            self.codec = replace(self.codec, target=float(self._returns().max()))
