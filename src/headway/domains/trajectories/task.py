"""The task over episodes: actions from what was seen and what was still to come, judged by playing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.data.episodes import Episodes
from headway.domains.trajectories import pictures
from headway.domains.trajectories.codec import TrajectoryCodec
from headway.domains.trajectories.rollout import play
from headway.domains.trajectories.windows import TrajectoryBatch, Windows
from headway.environments import Copies, seeds_of, worth
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of, evaluating
from headway.metrics import wilson
from headway.models import (
    ConvolutionsConfig,
    Encoded,
    Loss,
    ModelConfig,
    NumbersConfig,
    PatchesConfig,
    StepHeadConfig,
    TrajectoryEmbed,
    TrajectoryEmbedConfig,
    Transformer,
    TransformerConfig,
    step_heads,
)
from headway.report import Picture
from headway.train import WHOLE, Shard, Sided, sharding

if TYPE_CHECKING:
    from headway.domains.trajectories.config import TrajectoriesConfig

_JUDGED_AT_ONCE = 64  # windows
_SHOWN = 6.0  # evaluations: what is played for the page of a run takes about so long


class Trajectories(Sided):
    """`rows` is the number of windows in a training batch. Where there are `copies` of an environment, the goal is the
    mean return that is reached there; else the loss on held-out episodes.
    """

    unit = "timestep"

    def __init__(
        self,
        config: TrajectoriesConfig,
        episodes: Episodes,
        given: int,
        sides: dict[str, np.ndarray],
        codec: TrajectoryCodec,
        copies: Copies | None,
        rows: int,
        seed: int,
    ) -> None:
        """The first `given` episodes are those of the data, which the split "all" has alone; `sides` are the numbers of
        the episodes of each other split.
        """
        self.config, self.episodes, self.given, self.sides, self.codec = config, episodes, given, sides, codec
        self.copies = copies if config.episodes else None
        self.plays = self.copies is not None
        self.measure = "squared error of an action" if codec.choices is None else "nats of a choice"
        self.rows, self.seed = rows, seed
        self.goal = "return_mean" if self.plays else "loss"
        self.goal_better: Literal["min", "max"] = "max" if self.plays else "min"

    def adapt(self, model: ModelConfig) -> TransformerConfig:
        """`model` with the sizes of states and actions, timesteps for the longest episode, and the heads that are
        trained beside those it has. UserError for data and settings that nothing can be trained by.
        """
        self._check_training()
        config = cast(TransformerConfig, model)
        before = cast(TrajectoryEmbedConfig, config.embed)
        longest = int(self.episodes.lengths.max())
        limit = None if self.copies is None else self.copies.horizon
        embed = replace(
            before,
            states=self._sized(before.states),
            actions=self.codec.actions,
            discrete=self.codec.choices is not None,
            returns=self.config.condition,
            timesteps=max(before.timesteps, longest, limit or 0),
        )
        if config.context is not None and config.context < self.codec.context * embed.tokens:
            raise ConfigError(
                f"task.context {self.codec.context} has {self.codec.context * embed.tokens} tokens, and model.context "
                f"is {config.context}; lower task.context, or raise model.context"
            )
        wanted = {"states": bool(self.config.states), "returns": bool(self.config.returns)}
        heads = step_heads(embed, **{name: is_set or name in config.heads for name, is_set in wanted.items()})
        own, same = config.heads.get("actions"), before.discrete == embed.discrete
        if same and isinstance(own, StepHeadConfig) and (own.outputs, own.tokens) == (embed.actions, embed.tokens):
            heads["actions"] = own  # with the bias and the activation that it has
        return replace(config, embed=embed, heads=heads)

    def _check_training(self) -> None:
        """UserError where nothing is left to train on, or to judge by; ConfigError for next states that are images."""
        if not len(self.sides["train"]):
            raise nothing_left(self.episodes)
        if not self.plays:
            self._windows("validation")
        weight = self.config.states
        if weight and self.codec.image:
            raise ConfigError(
                f"task.states is {weight}, and the data's states are images, which no head says; set it to 0"
            )

    def _sized(self, states: Any) -> Any:
        if isinstance(states, NumbersConfig):
            return replace(states, size=self.codec.shape[0])
        if isinstance(states, (PatchesConfig, ConvolutionsConfig)):
            channels, *size = self.codec.seen
            return replace(states, channels=channels, size=tuple(size))
        return states

    def _windows(self, split: str) -> Windows:
        numbers = np.arange(self.given) if split == "all" else self.sides.get(split, np.zeros(0, int))
        if not len(numbers):
            raise UserError(
                f"the {split} split of {len(self.episodes)} episodes is empty; give files named {split}, a larger "
                "share (task.split), or an environment to be judged in (task.env)"
            )
        following = bool(self.config.states or self.config.returns)
        return Windows(self.episodes, numbers, self.codec, returns=self.config.condition, following=following)

    @cached_property
    def _training(self) -> Windows:
        return self._windows("train")

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[TrajectoryBatch]:
        """Batch k of training holds the windows that end at the steps k rows, ... of a shuffled stream of epochs."""
        if split == "train":
            windows = self._training
            for _, steps in sharding.endless(windows.steps, self.rows, self.seed, shard, start):
                yield windows.ending(steps)
            return
        windows = self._windows(split)
        yield from map(windows.judged, windows.once(_JUDGED_AT_ONCE)[shard.rank :: shard.world])

    def counts(self, batch: TrajectoryBatch) -> dict[str, int]:
        """Steps whose action is said, and those that have a successor."""
        found = {"actions": batch.tokens}
        if batch.following is not None:
            count = int(batch.following.keep.sum())
            found |= {name: count for name in ("states", "returns") if getattr(self.config, name)}
        return found

    def loss(self, model: nn.Module, batch: TrajectoryBatch) -> dict[str, Loss]:
        """Of actions nats, or the mean squared error of a step's numbers; of states and returns that, by its weight."""
        encoded: Encoded = model(batch.inputs, batch.layout)
        total = self._of_actions(model, encoded, batch).sum()
        extra = sum(encoded.auxiliary.values(), total.new_zeros(()))
        losses = {"actions": Loss(total + extra * batch.tokens, batch.tokens)}
        after, counts = batch.following, self.counts(batch)
        if after is None:
            return losses
        for name, target in (("states", after.states), ("returns", after.returns[..., None])):
            if name in counts:
                said = _said(model, name, encoded)[after.keep]
                error = (said - target[after.keep].flatten(1)).square().mean(-1).sum()
                losses[name] = Loss(getattr(self.config, name) * error, counts[name])
        return losses

    def _of_actions(self, model: nn.Module, encoded: Encoded, batch: TrajectoryBatch) -> Tensor:
        """The loss of each step that there is, [N]."""
        keep = batch.layout.keep
        said, target = _said(model, "actions", encoded)[keep], batch.inputs.actions[keep]
        if self.codec.choices is not None:
            return F.cross_entropy(said, target, reduction="none")
        return (said - target).square().mean(-1)

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """What episodes are worth that are played from seeds of this split alone, asked for the target; and the loss
        on held-out episodes, with the accuracy of choices, where there are any. `limit` is the most episodes of each.
        Raises UserError, before any work, for an episode that is too long for the model.
        """
        scores: dict[str, Any] = {}
        windows = None
        if not self.plays or split == "all" or len(self.sides.get(split, ())):
            windows = self._windows(split)
            _check_lengths(model, windows, limit)
        if self.copies is not None:
            seeds = seeds_of(split, min(self.config.episodes, limit or self.config.episodes))
            played = play(cast(Transformer, model), self.codec, self.copies, self.codec.target, seeds)
            scores = {"target_return": self.codec.target, **worth(played, self.copies.name)}
        if windows is not None:
            scores |= self._held_out(model, windows, limit)
        return scores

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        """A model that has learnt plays as long as the best episode that it learns from."""
        training = self.sides["train"]
        if "length_mean" not in scores or not len(training):
            return 1.0
        best = training[np.argmax(self.episodes.returns[training])]
        return max(1.0, float(self.episodes.lengths[best]) / scores["length_mean"])

    def showing(self) -> float:
        """Episodes that are asked for other returns, few for each, and two films."""
        if not self.plays:
            return 0.0
        return _SHOWN if self.config.condition else 1.0

    def count(self, split: str) -> int:
        return len(self.sides[split]) if self.copies is None else self.config.episodes

    @torch.no_grad()
    def _held_out(self, model: nn.Module, windows: Windows, limit: int | None) -> dict[str, Any]:
        total, right, steps = 0.0, 0, 0
        with evaluating(model):
            for first, last, owner in windows.once(_JUDGED_AT_ONCE):
                if limit is not None:
                    first, last, owner = (each[owner < limit] for each in (first, last, owner))
                if not len(first):
                    break
                batch = windows.judged((first, last, owner)).to(device_of(cast(Transformer, model)))
                encoded = model(batch.inputs, batch.layout)
                total += float(self._of_actions(model, encoded, batch).sum())
                steps += batch.tokens
                if self.codec.choices is not None:
                    keep = batch.layout.keep
                    said = _said(model, "actions", encoded)[keep].argmax(-1)
                    right += int((said == batch.inputs.actions[keep]).sum())
        scores: dict[str, Any] = {"loss": total / steps}
        if self.codec.choices is not None:
            scores |= {"accuracy": right / steps, "accuracy_interval": wilson(right, steps)}
        return scores if self.plays else {**scores, "samples": steps}

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """What the model reaches where it is asked for returns from the worst to the best of the training data."""
        if self.copies is None:
            return []
        self._asked = pictures.asked(cast(Transformer, model), self.codec, self.copies, self._targets(count))
        return [point.shown() for point in self._asked]

    def _targets(self, count: int) -> list[float]:
        returns = self.episodes.returns[self.sides["train"]]
        if not self.config.condition:
            return [self.codec.target]
        return np.unique(np.linspace(returns.min(), returns.max(), max(2, count))).tolist()

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Returns against what was asked for, and an episode as a strip of film where it can be drawn here."""
        if self.copies is None:
            return []
        found = pictures.curve(getattr(self, "_asked", []))
        ends = self._targets(2)
        return found + pictures.film_strips(cast(Transformer, model), self.codec, self.copies.name, ends)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)

    def close(self) -> None:
        if self.copies is not None:
            self.copies.close()


def nothing_left(episodes: Episodes) -> UserError:
    """What is raised where all episodes are held out."""
    return UserError(f"no one of {len(episodes)} episodes is left to train on; hold out fewer with task.split")


def _check_lengths(model: nn.Module, windows: Windows, limit: int | None) -> None:
    """UserError for an episode, of the first `limit`, of more steps than the model has timesteps for."""
    longest = int((windows.ends - windows.starts)[:limit].max())
    known = cast(TrajectoryEmbed, model.embed).config.timesteps
    if longest > known:
        raise UserError(
            f"an episode has {longest:,} steps, and this model knows {known:,} timesteps; leave the episode out, or "
            f"train a model with model.embed.timesteps={longest}"
        )


def _said(model: nn.Module, head: str, encoded: Encoded) -> Tensor:
    return model.get_submodule(f"heads.{head}")(encoded.x, encoded.layout)
