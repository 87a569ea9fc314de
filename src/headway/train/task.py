"""What a domain gives to the trainer: batches, a loss, an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from headway.checkpoints.familiar import Familiar
from headway.config import family
from headway.models import Loss, ModelConfig
from headway.train.examples import Batch as TreeBatch
from headway.train.examples import Examples
from headway.train.objective import Objective
from headway.train.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from headway.report import Picture
    from headway.train.recipe import Recipe


class Batch(Protocol):
    """Inputs and targets of one micro-batch."""

    @property
    def tokens(self) -> int:
        """Targets that count in the loss."""
        ...

    @property
    def computed(self) -> int:
        """Tokens that the model computes, padding included."""
        ...

    def to(self, device: torch.device | str) -> Self: ...


class Task(Protocol):
    """An objective over data, and the metrics it is judged by.

    `goal` names the metric that picks the best model, `goal_better` which way is better.
    """

    goal: str
    goal_better: Literal["min", "max"]

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with what only the data decides (the number of symbols)."""
        ...

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[Any]:
        """Micro-batches of a split: `train` without end, where batch k is a pure function of (seed, k); others once.

        `start` is the first k. A shard gets the batches start + rank, start + rank + world, ...: the order is the same
        at any world size.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Loss]:
        """Sums and counts by name. The trainer divides each by its count over the whole step and adds them up."""
        ...

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, float]:
        """Metrics on at most `limit` samples of a split; `goal` is one of them."""
        ...

    def count(self, split: str) -> int:
        """What `evaluate` judges on all of a split, in the samples of its `limit`."""
        ...

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Examples for display: columns by name, such as prompt and output, or source, output and reference."""
        ...

    def save(self, directory: Path) -> None:
        """Write what generation needs beside the model: the codec."""
        ...


def unit_of(task: Task | None) -> str:
    """What the loss of a task is counted by, for people: "token", "image", ..."""
    return getattr(task, "unit", "token")


def measure_of(task: Task | None) -> str:
    """What the loss of a task is, for people."""
    unit = unit_of(task)
    return getattr(task, "measure", f"nats {'an' if unit[0] in 'aeiou' else 'a'} {unit}")


class Sided:
    """A task whose samples are divided: `sides` holds the numbers of those of each split. The test of one that `plays`
    needs none.
    """

    sides: dict[str, np.ndarray]
    plays: bool = False

    @property
    def final_split(self) -> str:
        """The split on which a finished model is judged: test, or validation where there is no test."""
        return "test" if self.plays or len(self.sides["test"]) else "validation"

    def count(self, split: str) -> int:
        return len(self.sides[split])


@runtime_checkable
class Counts(Protocol):
    """A task with several losses that also counts them before a model runs.

    Needed to accumulate losses of different counts over micro-batches or processes: each must be divided by its count
    over the whole step, which has to be known before the first backward pass.
    """

    def counts(self, batch: Any) -> dict[str, int]:
        """The counts that `loss` will give for this batch, by name."""
        ...


@runtime_checkable
class Explores(Protocol):
    """A task whose batches are what the learning model itself does, with the weights of the moment (reinforcement
    learning). Batch k of training is a function of all updates before it; checkpoints hold what it hangs on beside the
    weights.
    """

    @property
    def period(self) -> int:
        """How many batches are made of what the model did at a time: only a whole period costs what others do."""
        ...

    def explore(self, model: nn.Module) -> None:
        """Begin anew: `batches("train")` and `loss` are of this model from now on."""
        ...

    def explored(self) -> dict[str, Tensor]:
        """What batches hang on beside the weights, for a checkpoint."""
        ...

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `explored` gave. Raises UserError where that is another task's."""
        ...


def explorer_of(task: Task) -> Explores | None:
    """What makes the batches of a task of what the learning model does; None for one of other batches."""
    found = task.examples if isinstance(task, Composed) else task
    return found if isinstance(found, Explores) else None


@runtime_checkable
class Closes(Protocol):
    """A task that holds what it should give back once it is needed no more: simulators, and what they draw with."""

    def close(self) -> None: ...


@runtime_checkable
class Meets(Protocol):
    """A task that knows what a model meets in training."""

    def met(self) -> Familiar | None:
        """Of the texts that are read."""
        ...


@runtime_checkable
class Plays(Protocol):
    """A task that is judged by playing, which takes longer the longer a model stays in the game."""

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        """How many times as long as the evaluation that gave `scores` one will take once the model has learnt."""
        ...

    def showing(self) -> float:
        """How many times as long as an evaluation it takes to play what is shown of the finished model."""
        ...


@family
@dataclass(frozen=True)
class TaskConfig:
    """A task as data."""

    makes_data: ClassVar[bool] = False  # whether it needs none of the user's and none that is known by name

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Read the data (None: the recipe's own), train or load the codec, and give the task.

        `workspace` is the run's directory.
        """
        raise NotImplementedError

    def starts(self) -> dict[str, PartStart]:
        """Where the weights of parts of the model come from that have a start of their own, by the part's name."""
        return {}


class PartStart(Protocol):
    """A part of a run or of a published model, from which a part of another model begins."""

    def open(self) -> nn.Module:
        """The part with its weights."""
        ...


class Composed:
    """Examples and an objective: all that the trainer, the budget and the reports know of a task."""

    def __init__(self, examples: Examples, objective: Objective[Any]) -> None:
        self.examples, self.objective = examples, objective
        self.goal: str = objective.goal
        self.goal_better: Literal["min", "max"] = objective.goal_better
        self.unit, self.measure = objective.unit, objective.measure

    @property
    def final_split(self) -> str:
        return self.examples.final_split

    @property
    def stated(self) -> str:
        return self.examples.stated

    @property
    def names(self) -> tuple[str, ...]:
        return self.examples.names

    def adapt(self, model: ModelConfig) -> ModelConfig:
        return self.objective.adapt(self.examples.adapt(model), self.examples)

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[TreeBatch]:
        return self.examples.batches(split, shard, start)

    def counts(self, batch: TreeBatch) -> dict[str, int]:
        return self.objective.counts(batch)

    def loss(self, model: nn.Module, batch: TreeBatch) -> dict[str, Loss]:
        return self.objective.loss(model, batch)

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        return self.objective.judge(model, self.examples, split, limit)

    def count(self, split: str) -> int:
        return self.objective.count(self.examples, split)

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        return self.objective.samples(model, self.examples, count)

    def pictures(self, model: nn.Module) -> list[Picture]:
        return self.objective.pictures(model, self.examples)

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        return self.objective.lengthening(scores)

    def showing(self) -> float:
        return self.objective.showing()

    def met(self) -> Familiar | None:
        return self.examples.met()

    def save(self, directory: Path) -> None:
        self.examples.save(directory)
        self.objective.save(directory)

    def close(self) -> None:
        self.examples.close()
        self.objective.close()
