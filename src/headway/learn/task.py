"""A task: what is learned, and what it is learned from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import nn

from headway.codecs import FILE, Codec, load_codec
from headway.config import family
from headway.data import chunks, text_sources
from headway.formats.familiar import Familiar
from headway.formats.hub import named_folder
from headway.learn.examples import WHOLE, Batch, Examples, Shard
from headway.learn.objective import Objective
from headway.nn.models import Loss, ModelConfig

if TYPE_CHECKING:
    from headway.learn.recipe import Recipe
    from headway.learn.report import Picture


class Task:
    """Examples and an objective: all that the trainer, the budget and the reports know of what is learned.

    `goal` is the score that picks the best model, `goal_better` which way is better; `unit` is what the loss is counted
    by, and `measure` what it is, for people. `chosen` are settings of the task's config that the data decided, and
    `reasons` say why.
    """

    def __init__(
        self,
        examples: Examples,
        objective: Objective[Any],
        chosen: Mapping[str, Any] | None = None,
        reasons: Sequence[str] = (),
    ) -> None:
        self.examples, self.objective = examples, objective
        self.chosen, self.reasons = chosen or {}, tuple(reasons)
        self.goal: str = objective.goal
        self.goal_better: Literal["min", "max"] = objective.goal_better
        self.unit, self.measure = objective.unit, objective.measure
        self.judges_start = objective.judges_start
        self._evaluated: int | None = None  # the limit of the last evaluation on the final split

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

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[Batch]:
        return self.examples.batches(split, shard, start)

    def counts(self, batch: Batch) -> dict[str, int]:
        return self.objective.counts(batch)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return self.objective.loss(model, batch)

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        if split == self.final_split:
            self._evaluated = limit
        return self.objective.judge(model, self.examples, split, limit)

    def strided(self, model: nn.Module, split: str, stride: int, limit: int | None = None) -> dict[str, Any]:
        return self.objective.strided(model, self.examples, split, stride, limit)

    def fault(self, scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
        return self.objective.fault(scores, best)

    def finished(self, scores: Mapping[str, Any]) -> str | None:
        return self.objective.finished(scores)

    def count(self, split: str) -> int:
        return self.objective.count(self.examples, split)

    def settled(self, recipe: Recipe) -> Recipe:
        """`recipe` with the settings that the data decided, and the reasons that it does not have yet."""
        reasons = (*recipe.reasons, *(reason for reason in self.reasons if reason not in recipe.reasons))
        return replace(recipe, task=replace(recipe.task, **self.chosen), reasons=reasons)

    def fit_head(self, model: nn.Module, fresh: Collection[str], limit: int) -> bool:
        return self.objective.fit_head(model, self.examples, fresh, limit)

    def refit_head(self, model: nn.Module, fresh: Collection[str], limit: int) -> int:
        return self.objective.refit_head(model, self.examples, fresh, limit)

    def calibrate(self, model: nn.Module, directory: Path) -> list[str]:
        """Choose on validation how a finished model is used, and save it next to the model; lines for people."""
        lines = self.objective.calibrate(model, self.examples, directory)
        if lines:
            self.save(directory)
        return lines

    def depth(self, model: nn.Module, limit: int) -> int | None:
        return self.objective.depth(model, self.examples, limit)

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        return self.objective.samples(model, self.examples, count)

    def remark(self, model: nn.Module) -> str:
        return self.objective.remark(model, self.examples)

    def pictures(self, model: nn.Module) -> list[Picture]:
        """For the page of a run: of the samples that the score on the final split is of."""
        examples = self.examples.limited(self.final_split, self._evaluated) if self._evaluated else self.examples
        return self.objective.pictures(model, examples)

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


def unit_of(task: Task | None) -> str:
    """What the loss of a task is counted by, for people: "token", "image", ...; of a run without its task, "token"."""
    return "token" if task is None else task.unit


def measure_of(task: Task | None) -> str:
    """What the loss of a task is, for people."""
    return "nats a token" if task is None else task.measure


@family
@dataclass(frozen=True)
class TaskConfig:
    """A task as data."""

    makes_data: ClassVar[bool] = False  # whether it needs none of the user's and none that is known by name
    beside: ClassVar[tuple[str, ...]] = ()  # files of its own beside a model, which another run may start from

    @property
    def context(self) -> int | None:
        """The tokens of a row, the most of them where rows differ; None where it is not the task that says so."""
        return None

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Read the data (None: the recipe's own), train or load the codec, and give the task.

        `workspace` is the run's directory.
        """
        raise NotImplementedError

    def starts(self) -> dict[str, PartStart]:
        """Where the weights of parts of the model come from that have a start of their own, by the part's name."""
        return {}


def codec_of(
    paths: Sequence[Path], workspace: Path, tokenizer: str | None, train: Callable[[Iterator[str]], Codec]
) -> Codec:
    """The run's codec, that of a published `tokenizer`, or what is trained on all texts of files: what is held out is
    never learned from, but has its symbols.
    """
    if (workspace / FILE).exists():
        return load_codec(workspace)
    if tokenizer is not None:
        return load_codec(named_folder(tokenizer))
    return train(chunk.text for source in text_sources(paths) for chunk in chunks(source))


class PartStart(Protocol):
    """A part of a run or of a published model, from which a part of another model begins."""

    def open(self) -> nn.Module:
        """The part with its weights."""
        ...
