"""A task: examples, and the objective to train on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from headway.codecs import FILE, Codec, load_codec
from headway.data import iter_chunks, text_sources
from headway.io.hub import named_folder
from headway.learn.examples import FULL_SHARD, Batch, Examples, Shard
from headway.learn.objective import Objective
from headway.nn.models import Loss, ModelConfig

if TYPE_CHECKING:
    from headway.learn.report import Picture


class Task:
    """Examples and an objective, which is everything that the trainer, the budget and the reports know about a task.

    `goal` is the score that selects the best model, and `goal_better` its better direction. `unit` is the unit that the
    loss is averaged over, and `measure` the loss unit, for people. `chosen_settings` are settings in the task's config
    that depend on the data; `reasons` explain them.
    """

    def __init__(
        self,
        examples: Examples,
        objective: Objective[Any],
        chosen: Mapping[str, Any] | None = None,
        reasons: Sequence[str] = (),
    ) -> None:
        self.examples, self.objective = examples, objective
        self.chosen_settings, self.reasons = chosen or {}, tuple(reasons)
        self.goal: str = objective.goal
        self.goal_better: Literal["min", "max"] = objective.goal_better
        self.unit, self.measure = objective.unit, objective.measure
        self.evaluates_start = objective.evaluates_start
        self._final_limit: int | None = None  # limit used in the last evaluation on the final split

    @property
    def final_split(self) -> str:
        return self.examples.final_split

    def adapt(self, model: ModelConfig) -> ModelConfig:
        return self.objective.adapt(self.examples.adapt(model), self.examples)

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        return self.examples.batches(split, shard, start)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return self.objective.loss(model, batch)

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        if split == self.final_split:
            self._final_limit = limit
        return self.objective.evaluate(model, self.examples, split, limit)

    def count(self, split: str) -> int:
        return self.objective.count(self.examples, split)

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        return self.objective.samples(model, self.examples, count)

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Pictures for a run's report, from the samples that the final score was measured on."""
        examples = self.examples.limited(self.final_split, self._final_limit) if self._final_limit else self.examples
        return self.objective.pictures(model, examples)

    def save(self, directory: Path) -> None:
        self.examples.save(directory)
        self.objective.save(directory)

    def close(self) -> None:
        self.examples.close()
        self.objective.close()


_PREVIEW, _PREVIEW_CHARACTERS = 5, 200  # samples, and characters of each, in a summary


class DataSummary(NamedTuple):
    """What a task reads: the number of samples in each split and what they are called, the number of training `targets`
    and their unit, the samples per class, a few of them as text, and remarks about changed or skipped data.
    """

    noun: str
    samples: Mapping[str, int]
    targets: int
    unit: str
    classes: Mapping[str, int]
    preview: tuple[str, ...]
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, targets: int) -> DataSummary:
        examples, splits = task.examples, task.examples.data_splits
        counts = {name: size for name, size in examples.split_sizes().items() if size}
        noun = f"{task.unit}s" if splits is None else splits.noun
        preview = (" ".join(text[:_PREVIEW_CHARACTERS].split()) for text in examples.preview(_PREVIEW))
        return cls(noun, counts, targets, task.unit, examples.class_counts(), tuple(preview), examples.remarks)


def unit_of(task: Task | None) -> str:
    """The unit that the loss is averaged over: "token", "image", ...; "token" for a run without its task."""
    return "token" if task is None else task.unit


def measure_of(task: Task | None) -> str:
    """A task's loss unit, for people."""
    return "nats per token" if task is None else task.measure


def codec_of(
    paths: Sequence[Path], workspace: Path, tokenizer: str | None, train: Callable[[Iterator[str]], Codec]
) -> Codec:
    """The run's codec, that of a published `tokenizer`, or a new one trained on all text in the files. The model is
    never trained on held-out text, but the vocabulary covers it.
    """
    if (workspace / FILE).exists():
        return load_codec(workspace)
    if tokenizer is not None:
        return load_codec(named_folder(tokenizer))
    return train(chunk.text for source in text_sources(paths) for chunk in iter_chunks(source))
