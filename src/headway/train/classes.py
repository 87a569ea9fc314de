"""One class for each sample, whatever a sample is: what tasks on images and on sounds share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.data import SplitConfig, sides_of
from headway.data.splits import larger_share, side_number
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of, evaluating
from headway.metrics import class_scores
from headway.models import Loss, Transformer
from headway.train import sharding
from headway.train.labels import labels_of, save_labels, unknown_label
from headway.train.recipe import Recipe
from headway.train.task import WHOLE, Shard, Sided

HEAD = "classes"


@dataclass(frozen=True)
class ClassBatch:
    """Inputs of a model and the share of each class in each, [B, C], or its number, int64 [B]. An input becomes so many
    tokens in the model.
    """

    inputs: Tensor
    labels: Float[Tensor, "B C"] | Int[Tensor, "B"]
    tokens_each: int = 1

    @property
    def tokens(self) -> int:
        return len(self.labels)

    @property
    def computed(self) -> int:
        return len(self.labels) * self.tokens_each

    def to(self, device: torch.device | str) -> Self:
        if self.labels.device == torch.device(device):
            return self
        return type(self)(self.inputs.to(device), self.labels.to(device), self.tokens_each)


@dataclass(frozen=True)
class ClassSamples:
    """The label of each sample, what files say of its split, uint8 [N], a key that equal samples share, and its place
    for messages.
    """

    labels: Sequence[str]
    named: np.ndarray
    keys: Sequence[str]
    place: Callable[[int], str]


class ClassTask(Sided):
    """Cross-entropy of the head "classes", judged by accuracy. A batch is train.batch_size samples.

    A domain says what the inputs of samples are (`inputs`) and how people see them (`shown`).
    """

    goal: str = "accuracy"
    goal_better: Literal["min", "max"] = "max"
    unit = "sample"  # what the loss is counted by, for people
    at_once = 64  # samples that are judged together

    def __init__(
        self, recipe: Recipe, samples: ClassSamples, split: SplitConfig, smoothing: float, workspace: Path
    ) -> None:
        """Raises UserError for labels that training never sees and for fewer than two, ConfigError for settings."""
        self.seed = recipe.train.seed
        self.size = batch_size_of(recipe)
        self.smoothing = smoothing
        self.stated = _stated(samples.named)
        self.sides = _with_all_classes(sides_of(samples.keys, samples.named, split), samples)
        trained = {samples.labels[int(row)] for row in self.sides["train"]}
        self.labels = labels_of(trained or set(samples.labels), workspace)
        numbers = {label: number for number, label in enumerate(self.labels)}
        wrong = next((row for row, label in enumerate(samples.labels) if label not in numbers), None)
        if wrong is not None:
            raise unknown_label(samples.labels[wrong], samples.place(wrong), self.labels)
        self.classes = np.fromiter((numbers[label] for label in samples.labels), np.int64, len(samples.labels))

    def inputs(self, rows: np.ndarray, places: np.ndarray | None = None) -> Tensor:
        """What the model reads of samples, int [B]. Where `places` int [B] in the endless stream of training samples
        are given, what is drawn at random is drawn from them and the seed alone; else nothing is.
        """
        raise NotImplementedError

    def shown(self, row: int) -> str:
        """A sample as a line of text: its file's name."""
        raise NotImplementedError

    def numbers(self, split: str) -> np.ndarray:
        """The samples of a split, int64 [N]; "all" is all there are. A UserError where there are none."""
        found = np.arange(len(self.classes)) if split == "all" else self.sides[split]
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.classes):,} samples is empty; give a folder named {split}, or "
                f"{larger_share(split)}"
            )
        return found

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[ClassBatch]:
        """Batch k of training holds the samples k size, ..., (k + 1) size - 1 of a shuffled stream of epochs."""
        rows = self.numbers(split)
        if split != "train":
            for some in sharding.once(len(rows), self.at_once, shard):
                yield ClassBatch(self.inputs(rows[some]), torch.from_numpy(self.classes[rows[some]]))
            return
        for places, samples in sharding.endless(len(rows), self.size, self.seed, shard, start):
            yield self.training_batch(rows[samples], places)

    def training_batch(self, rows: np.ndarray, places: np.ndarray) -> ClassBatch:
        """A batch to learn from; a domain may mix its samples and their labels."""
        return ClassBatch(self.inputs(rows, places), torch.from_numpy(self.classes[rows]))

    def loss(self, model: nn.Module, batch: ClassBatch) -> dict[str, Loss]:
        logits = cast(Transformer, model).output(HEAD, batch.inputs)
        total = F.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=self.smoothing)
        return {"loss": Loss(total, batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a sample, without smoothing), accuracy and macro F1 over a split, or `limit` samples of it."""
        rows = sharding.spread(self.numbers(split), limit)
        logits = self.logits(model, rows)
        right = torch.from_numpy(self.classes[rows])
        nats = float(F.cross_entropy(logits, right))
        return {"loss": nats, **class_scores(logits.argmax(-1).numpy(), right.numpy())}

    def logits(self, model: nn.Module, rows: np.ndarray) -> Float[Tensor, "N C"]:
        """What the model says of samples, on the processor."""
        classifier = cast(Transformer, model)
        found = []
        with evaluating(classifier), torch.no_grad():
            for some in np.split(rows, range(self.at_once, len(rows), self.at_once)):
                inputs = self.inputs(some).to(device_of(classifier))
                found.append(classifier.output(HEAD, inputs).float().cpu())
        return torch.cat(found)

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out samples with the class that is said and the one that is right."""
        rows = self.spread(count)
        said = self.logits(model, rows).argmax(-1).tolist()
        return [
            {"source": self.shown(row), "output": self.labels[label], "reference": self.labels[self.classes[row]]}
            for row, label in zip(rows.tolist(), said)
        ]

    def spread(self, count: int) -> np.ndarray:
        """Samples of the split that is judged last, spread evenly over it."""
        return sharding.spread(self.numbers(self.final_split), count)

    def save(self, directory: Path) -> None:
        save_labels(directory, self.labels)


def _stated(named: np.ndarray) -> str:
    """The part of samples that is judged where files say of which split they are: test, or validation; all where they
    hold none of these.
    """
    return next((side for side in ("test", "validation") if (named == side_number(side)).any()), "all")


def _with_all_classes(sides: dict[str, np.ndarray], samples: ClassSamples) -> dict[str, np.ndarray]:
    """The sides without those samples that were drawn to be held out and whose class training would never see: these
    are trained on, with all that equal them.
    """
    labels, keys = np.array(samples.labels, object), np.array(samples.keys, object)
    lost = set(samples.labels) - set(labels[sides["train"]])
    drawn = samples.named <= side_number("train")
    if not lost or not drawn.any():
        return sides
    stated = set(keys[~drawn])  # files hold these out, so that their equals are not trained on
    wanted = {keys[row] for row in np.flatnonzero(drawn) if labels[row] in lost} - stated
    back = np.flatnonzero(np.fromiter((key in wanted for key in keys), bool, len(keys)))
    kept = {side: rows[~np.isin(rows, back)] for side, rows in sides.items()}
    return {**kept, "train": np.union1d(kept["train"], back)}


def batch_size_of(recipe: Recipe) -> int:
    """The samples of a micro-batch; ConfigError for a recipe that counts tokens."""
    train = recipe.train
    if train.batch_size is None or train.batch_tokens is not None:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and train.batch_tokens {train.batch_tokens}; batches of this task "
            "are made by samples: set train.batch_size alone"
        )
    return train.batch_size


def check_classes(given: Collection[str], kept: Collection[str], unit: str) -> None:
    """UserError for a class of which nothing was left that can be read."""
    lost = set(given) - set(kept)
    if kept and lost:
        raise UserError(f"no {unit} of the class {min(lost)!r} can be read; add {unit}s that can, or remove the class")
