"""The task over demonstrations: chunks of actions from what is seen, judged by playing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import nn

from headway.data.demonstrations import Demonstrations
from headway.domains.robotics import pictures
from headway.domains.robotics.codec import RobotCodec, words_of
from headway.domains.robotics.rollout import limit_of, open_each, play, together, worth
from headway.domains.robotics.windows import RobotBatch, Windows
from headway.environments import Copies, seeds_of
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of, evaluating
from headway.models import ActConfig, Loss, ModelConfig, RobotPolicy, RobotPolicyConfig
from headway.report import Picture
from headway.train import WHOLE, Shard, Sided

if TYPE_CHECKING:
    from headway.domains.robotics.config import RoboticsConfig

_JUDGED_AT_ONCE = 64  # windows
_DRAWS = 13  # so that what training draws has nothing to do with other draws from the same seed


class Robotics(Sided):
    """`rows` is the number of windows in a training batch. Where tasks can be played, the goal is "score", the success
    rate with less than an episode's worth for speed; else the loss on held-out demonstrations.
    """

    unit, measure = "action", "mean error of an action"

    def __init__(
        self,
        config: RoboticsConfig,
        model: RobotPolicyConfig,
        data: Demonstrations,
        sides: dict[str, np.ndarray],
        codec: RobotCodec,
        rows: int,
        seed: int,
    ) -> None:
        """`sides` are the numbers of the demonstrations of each split."""
        self.config, self.model, self.data, self.sides, self.codec = config, model, data, sides, codec
        self.rows, self.seed = rows, seed
        self._judged: dict[str, dict[str, Any]] = {}  # what each task came to at the last evaluation
        self.played = self._open() if config.episodes else {}
        self.plays = bool(self.played)
        self.goal = "score" if self.plays else "loss"
        self.goal_better: Literal["min", "max"] = "max" if self.plays else "min"

    def _open(self) -> dict[str, Copies]:
        """Copies of the environment of each task that has one, by its name."""
        places = {name: place for name, place in zip(self.codec.names, self.codec.environments) if place}
        try:
            copies = open_each(self.codec, list(places.values()), max(self.config.episodes, self.config.final))
        except UserError as error:
            raise UserError(f"{error}; or set task.episodes=0 to judge by held-out demonstrations alone") from error
        return dict(zip(places, copies))

    def adapt(self, model: ModelConfig) -> RobotPolicyConfig:
        """`model` with the sizes of states, pictures and actions, and the words of tasks.

        UserError where nothing is left to train on or, without an environment, to judge by.
        """
        if not len(self.sides["train"]):
            raise nothing_left(self.data)
        if not self.plays:
            self._windows("validation")
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
            raise ConfigError("this model reads no names of tasks, and there are several; set task.text=false")
        return replace(config, **sizes)

    def _windows(self, split: str) -> Windows:
        numbers = np.arange(len(self.data)) if split == "all" else self.sides.get(split, np.zeros(0, int))
        if not len(numbers):
            raise UserError(
                f"the {split} split of {len(self.data)} demonstrations is empty; give files named {split}, a larger "
                "share (task.split), or an environment to be judged in (task.env)"
            )
        return Windows(self.data, numbers, self.codec, self.model.chunk, self.model.history)

    @cached_property
    def _training(self) -> Windows:
        return self._windows("train")

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[RobotBatch]:
        """Batch k of training and what chance gives to it are functions of the seed and k."""
        if split == "train":
            for number, steps in self._training.endless(self.rows, self.seed, shard, start):
                yield self._batch(self._training, steps, number, self.config.noise)
            return
        windows = self._windows(split)
        steps = windows.once()
        for first in range(shard.rank * _JUDGED_AT_ONCE, len(steps), shard.world * _JUDGED_AT_ONCE):
            yield self._batch(windows, steps[first : first + _JUDGED_AT_ONCE], first)

    def _batch(self, windows: Windows, steps: np.ndarray, number: int, noise: float = 0.0) -> RobotBatch:
        chunks, seen = windows.chunks(steps), windows.seen(steps)
        random = np.random.default_rng([_DRAWS, self.seed, number])
        drawn = self.model.head.draw(random, len(steps), self.model.horizon, len(self.codec.scale))
        if noise and seen.states is not None:
            moved = random.standard_normal(tuple(seen.states.shape), np.float32)
            seen = seen._replace(states=seen.states + noise * torch.from_numpy(moved))
        return RobotBatch(seen, chunks, drawn, int(chunks.keep.sum()), chunks.keep.numel())

    def counts(self, batch: RobotBatch) -> dict[str, int]:
        """Actions that there are and, where there is a latent, rows."""
        found = {"actions": batch.tokens}
        return found | {"kl": len(batch.chunks.keep)} if self.model.head.size else found

    def loss(self, model: nn.Module, batch: RobotBatch) -> dict[str, Loss]:
        return cast(RobotPolicy, model).losses(batch.seen, batch.chunks, batch.drawn)

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """How often each task succeeds that can be played, from seeds of this split alone; and the mean absolute error
        of the actions of held-out demonstrations, in the codec's numbers, where there are any. `limit` is the most
        episodes and windows of each.
        """
        scores: dict[str, Any] = {}
        if self.plays:
            scores = self._playing(cast(RobotPolicy, model), split, limit)
        if not self.plays or split == "all" or len(self.sides[split]):
            scores |= self._held_out(cast(RobotPolicy, model), split, limit)
        return scores

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        """What has not succeeded plays to the end; where no one tells, as long as was demonstrated."""
        return max(1.0, self.codec.longest / scores["length_mean"]) if "length_mean" in scores else 1.0

    def showing(self) -> float:
        """A film of each task."""
        return 1.0 if self.plays else 0.0

    def count(self, split: str) -> int:
        return self.config.final if self.plays else len(self.sides[split])

    def _playing(self, model: RobotPolicy, split: str, limit: int | None) -> dict[str, Any]:
        episodes = self.config.episodes if split == "validation" else self.config.final
        seeds = seeds_of(split, min(episodes, limit or episodes))
        played = {name: play(model, self.codec, copies, name, seeds) for name, copies in self.played.items()}
        results = {name: worth(each, limit_of(self.codec, self.played[name])) for name, each in played.items()}
        self._judged = results
        found = together(list(results.values()), list(played.values()))
        scores = {"score": self._score(found), **found}
        for name, result in results.items() if len(results) > 1 else ():
            if "success_rate" in result:
                own = "_".join(["success_rate", *words_of(name)])
                scores |= {own: result["success_rate"], f"{own}_interval": result["success_rate_interval"]}
        return scores

    def _score(self, found: dict[str, Any]) -> float:
        """One number to judge by: of two equal success rates the one that takes fewer steps is better. Where no episode
        told whether it succeeded, it is the return as a number from -1 to 0, below that of any success.
        """
        if "success_rate" not in found:
            return (found["return_mean"] / (1 + abs(found["return_mean"])) - 1) / 2
        longest = max(limit_of(self.codec, copies) for copies in self.played.values())
        return found["success_rate"] + (1 - min(1.0, found["steps_mean"] / longest)) / (2 * found["samples"])

    @torch.no_grad()
    def _held_out(self, model: RobotPolicy, split: str, limit: int | None) -> dict[str, Any]:
        windows = self._windows(split)
        total, actions, steps = 0.0, 0, windows.once()[:limit]
        with evaluating(model):
            for first in range(0, len(steps), _JUDGED_AT_ONCE):
                some = steps[first : first + _JUDGED_AT_ONCE]
                batch = self._batch(windows, some, first).to(device_of(model))
                wanted, keep = (each[:, self.model.history - 1 :] for each in batch.chunks)
                error = (model(batch.seen, batch.drawn) - wanted).abs().mean(-1)
                total += float(error[keep].sum())
                actions += int(keep.sum())
        scores: dict[str, Any] = {"loss": total / actions}
        return scores if self.plays else {**scores, "samples": actions}

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Nothing: how often each task succeeds is a picture."""
        return []

    def pictures(self, model: nn.Module) -> list[Picture]:
        """How often tasks succeed, an episode of each as a strip of film, and a chunk beside what was demonstrated."""
        act = cast(RobotPolicy, model)
        beside = self._windows(next(side for side in ("test", "validation", "train") if len(self.sides[side])))
        return [
            *pictures.success(self._judged),
            *pictures.film_strips(act, self.codec, list(self.played)),
            *pictures.chunk_beside(act, beside),
        ]

    def save(self, directory: Path) -> None:
        self.codec.save(directory)

    def close(self) -> None:
        for copies in self.played.values():
            copies.close()


def nothing_left(data: Demonstrations) -> UserError:
    """What is raised where all demonstrations are held out."""
    return UserError(f"none of {len(data)} demonstrations is left to train on; hold out fewer with task.split")
