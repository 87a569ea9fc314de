"""One class for each sample, whatever a sample is; and the names of classes, in an order that a run keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.data import SplitConfig, Splits, sides_of
from headway.data.spellings import join_spellings, plain
from headway.data.splits import Sides, side_number
from headway.errors import UserError, nearest
from headway.formats.usage import read_usage
from headway.learn.examples import Batch, Contents, Numbered
from headway.learn.objectives.linear import LinearHead, fit_linear, refit_linear
from headway.learn.objectives.predictions import (
    Goals,
    PredictedSamples,
    Prediction,
    PredictionObjective,
    Vectors,
    one_per_class,
    set_map,
)
from headway.learn.report import Picture
from headway.learn.report.confusion import confusions
from headway.metrics import balanced_scores
from headway.nn.models import Loss, ModelConfig, Transformer

_RECIPE = "recipe.json"  # in a workspace it says that the run has begun, so that what lies there is its own


def labels_of(found: Collection[str], workspace: Path) -> tuple[str, ...]:
    """The names of classes in order: those of the run that is here; else those of the model it starts from, if they
    are the same, so that its head fits; else what the data have.
    """
    saved = read_usage(workspace).labels
    if saved and ((workspace / _RECIPE).exists() or set(saved) == set(found)):
        return saved
    if not found:
        raise UserError("the data hold no samples, so there is nothing to learn; give some")
    if len(found) < 2:
        raise UserError(
            f"the data have one label only, {next(iter(found))!r}, so there is nothing to tell apart; give more"
        )
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def unknown_label(label: str, where: str, known: Collection[str]) -> UserError:
    near = nearest(label, known) if len(known) <= 200 else f"there are {len(known)}"
    return UserError(f"{where}: the label {label!r} is never seen in training ({near}); correct it, or train with it")


HEAD = "classes"


@dataclass(frozen=True)
class ClassSamples:
    """The label of each sample, what files say of its split, uint8 [N], a key that equal samples share, and its place
    for messages.
    """

    labels: Sequence[str]
    named: np.ndarray
    keys: Sequence[str]
    place: Callable[[int], str]


class Classified(Numbered):
    """Samples with a class each. A domain says what the inputs of samples are (`take`) and how people see them."""

    labels: tuple[str, ...]
    joined: tuple[str, ...] = ()  # which spellings of labels were joined, for the report
    classes: Int[np.ndarray, "N *T"]  # the number of each sample's label, or of those of its tokens

    def label(self, samples: ClassSamples, split: SplitConfig, what: str, give: str, workspace: Path) -> None:
        """Settle classes and splits. UserError for labels that training never sees, and for fewer than two."""
        self.stated = stated_split(samples.named)
        samples = replace(samples, labels=self._joined(samples.labels, workspace))
        sides = _with_all_classes(sides_of(samples.keys, samples.named, split, samples.labels), samples)
        self.splits = Splits(sides, np.arange(len(samples.labels)), what, give)
        trained = {samples.labels[int(row)] for row in sides["train"]}
        self.classes = self.numbered(samples.labels, trained, samples.place, workspace)

    def numbered(
        self, given: Sequence[str], trained: Collection[str], place: Callable[[int], str], workspace: Path
    ) -> Int[np.ndarray, "K"]:
        """Settle the labels, by those that are `trained` on, and the numbers of the `given` ones, which stand at
        `place`. UserError for labels that training never sees, and for fewer than two.
        """
        names = dict(zip(given, self._joined(given, workspace)))
        given, trained = [names[label] for label in given], {names[label] for label in trained}
        self.labels = labels_of(trained or set(given), workspace)
        numbers = {label: number for number, label in enumerate(self.labels)}
        wrong = next((row for row, label in enumerate(given) if label not in numbers), None)
        if wrong is not None:
            raise unknown_label(given[wrong], place(wrong), self.labels)
        return np.fromiter((numbers[label] for label in given), np.int64, len(given))

    def contents(self) -> Contents:
        return {**super().contents(), "labels": (self.labels, self.classes)}

    def _joined(self, given: Sequence[str], workspace: Path) -> list[str]:
        """Labels in the spelling of the run or the model that is in the workspace, or in one spelling each."""
        found = join_spellings(given, read_usage(workspace).labels)
        self.joined += found.remarks
        return found.labels

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.joined)

    def save(self, directory: Path) -> None:
        read_usage(directory).for_problem("single_label_classification", self.labels).save(directory)


class ClassifiedSamples(Classified, PredictedSamples):
    """Samples with one class each."""


C = TypeVar("C", bound=ClassifiedSamples)


class Classes(PredictionObjective[C], Generic[C]):
    """Cross-entropy of the head "classes" with labels, int64 [B], or with the share of each class, [B, C].

    `smoothing` spreads that share of each label over all classes (Szegedy et al. 2016); `weights` [C] are those of the
    classes in the loss, and `rare` the classes whose F1 is told apart.
    """

    head = HEAD
    goals: ClassVar[Goals] = {
        "accuracy": "max",
        "f1": "max",
        "balanced_accuracy": "max",
        "rare_f1": "max",
        "loss": "min",
    }

    def __init__(
        self,
        unit: str,
        smoothing: float = 0.0,
        weights: Float[Tensor, "C"] | None = None,
        rare: Collection[int] = (),
        goal: str = "accuracy",
    ) -> None:
        super().__init__(unit, goal)
        self.smoothing, self.weights, self.rare = smoothing, weights, rare
        if goal == "rare_f1" and not rare:
            raise UserError("task.goal is 'rare_f1', and no class is rare; use f1")

    @property
    def measure(self) -> str:
        return super().measure if self.weights is None else f"{super().measure}, classes weighted"

    def adapt(self, model: ModelConfig, examples: C) -> ModelConfig:
        """`model` with a head of as many classes as there are."""
        return examples.with_head(model, HEAD, len(examples.labels))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits = cast(Transformer, model).output(HEAD, *batch.inputs)
        return {"loss": Loss(self.entropy(logits, batch.targets, self.smoothing), batch.tokens)}

    def entropy(self, logits: Float[Tensor, "B C"], targets: Tensor, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """The sum of the cross-entropies, each times the weight of its class (of its classes, by their shares)."""
        if self.weights is None:
            return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        found, weights = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing), self.weights
        each = targets @ weights.to(targets) if targets.is_floating_point() else weights.to(logits)[targets]
        return (found * each).sum()

    def fitted(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Logistic regression."""
        return fit_linear(train, validation, outputs, self.weights)

    def refit_head(self, model: nn.Module, examples: C, fresh: Collection[str], limit: int) -> int:
        """Logistic regression from where training has ended."""
        project = self.fresh_map(model, fresh)
        parts = [examples.of(side) for side in ("train", "validation")]
        count = sum(map(len, parts))
        if project is None or count > limit or examples.final_split != "test":
            return 0
        vectors, classes = (torch.cat(each) for each in zip(*(self.vectors(model, project, part) for part in parts)))
        bias = torch.zeros(len(project.weight)) if project.bias is None else project.bias
        now = LinearHead(project.weight.detach().cpu(), bias.detach().cpu())
        set_map(project, refit_linear(now, (vectors, classes), self.weights))
        return count

    def judge(self, model: nn.Module, examples: C, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a sample, without smoothing), accuracy, macro F1 and balanced accuracy over a split, or `limit`
        samples of it. Where classes are rare, balanced scores come first.
        """
        logits, right = self.evaluated(model, examples, split, limit)
        nats = float(F.cross_entropy(logits, right, self.weights))
        scores = balanced_scores(logits.argmax(-1).numpy(), right.numpy(), self.rare)
        scores.setdefault(self.goal, 0.0)  # of rare classes that none of these samples has
        return {**scores, "loss": nats} if self.rare else {"loss": nats, **scores}

    def predictions(
        self, examples: C, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        names = examples.labels
        return [
            Prediction(row, names[one], names[other], one == other)
            for row, one, other in zip(rows.tolist(), outputs.argmax(-1).tolist(), targets.tolist())
        ]

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        return one_per_class((outputs.argmax(-1) != targets).numpy(), targets.numpy())

    def charts(self, examples: C, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        """Which classes are taken for which."""
        what = f"{examples.final_split} {self.unit}s"
        return confusions(targets.numpy(), outputs.argmax(-1).numpy(), examples.labels, what)


def stated_split(named: np.ndarray) -> str:
    """The part of samples that is judged where files say of which split they are: test, or validation; all where they
    hold none of these.
    """
    return next((side for side in ("test", "validation") if (named == side_number(side)).any()), "all")


def _with_all_classes(sides: Sides, samples: ClassSamples) -> Sides:
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
    return Sides({**kept, "train": np.union1d(kept["train"], back)}, sides.removed)


def check_classes(given: Collection[str], kept: Collection[str], unit: str) -> None:
    """UserError for a class of which nothing was left that can be read."""
    lost = set(map(plain, given)) - set(map(plain, kept))
    if kept and lost:
        raise UserError(f"no {unit} of the class {min(lost)!r} can be read; add {unit}s that can, or remove the class")
