"""Classification: one class per sample; and the names of the classes, in a fixed order per run."""

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

_RECIPE = "recipe.json"  # in a workspace, shows that the run has started and the other files belong to it


def labels_of(found: Collection[str], workspace: Path) -> tuple[str, ...]:
    """The ordered names of the classes: those of the existing run; otherwise those of the pretrained model, if they are
    the same, so that its head fits; otherwise those of the data.
    """
    saved = read_usage(workspace).labels
    if saved and ((workspace / _RECIPE).exists() or set(saved) == set(found)):
        return saved
    if not found:
        raise UserError("the data contain no samples; add labelled samples")
    if len(found) < 2:
        raise UserError(f"the data have only one label, {next(iter(found))!r}; add samples with other labels")
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def unknown_label(label: str, where: str, known: Collection[str]) -> UserError:
    near = nearest(label, known) if len(known) <= 200 else f"there are {len(known)}"
    return UserError(f"{where}: the label {label!r} does not occur in training ({near}); correct it, or add samples")


HEAD = "classes"


@dataclass(frozen=True)
class ClassSamples:
    """The label of each sample, its split according to the files, uint8 [N], a key that equal samples share, and its
    location for messages.
    """

    labels: Sequence[str]
    named: np.ndarray
    keys: Sequence[str]
    place: Callable[[int], str]


class Classified(Numbered):
    """Samples with one class each. A domain defines their inputs (`take`) and their text for people."""

    labels: tuple[str, ...]
    joined: tuple[str, ...] = ()  # which spellings of labels were merged, for the report
    classes: Int[np.ndarray, "N *T"]  # class index of each sample, or of each of its tokens

    def label(self, samples: ClassSamples, split: SplitConfig, what: str, give: str, workspace: Path) -> None:
        """Set classes and splits. UserError for labels without training samples, and for fewer than two classes."""
        self.stated = stated_split(samples.named)
        samples = replace(samples, labels=self._joined(samples.labels, workspace))
        sides = _with_all_classes(sides_of(samples.keys, samples.named, split, samples.labels), samples)
        self.splits = Splits(sides, np.arange(len(samples.labels)), what, give)
        trained = {samples.labels[int(row)] for row in sides["train"]}
        self.classes = self.numbered(samples.labels, trained, samples.place, workspace)

    def numbered(
        self, given: Sequence[str], trained: Collection[str], place: Callable[[int], str], workspace: Path
    ) -> Int[np.ndarray, "K"]:
        """Set the class names from `training_labels`, and return the class indices of `labels`, whose locations are
        `locate`. UserError for labels without training samples, and for fewer than two classes.
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
        """Labels in the spelling of the run or model in the workspace, otherwise in one spelling each."""
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
    """Cross-entropy of the head "classes" with labels, int64 [B], or with class probabilities, [B, C].

    `smoothing` distributes that fraction of each label over all classes (Szegedy et al. 2016); `weights` [C] are class
    weights in the loss, and `rare` the classes whose F1 is reported separately.
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
            raise UserError("task.goal is 'rare_f1', but no class is rare; use f1")

    @property
    def measure(self) -> str:
        return super().measure if self.weights is None else f"{super().measure}, classes weighted"

    def adapt(self, model: ModelConfig, examples: C) -> ModelConfig:
        """`model` with a head for the number of classes."""
        return examples.with_head(model, HEAD, len(examples.labels))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits = cast(Transformer, model).output(HEAD, *batch.inputs)
        return {"loss": Loss(self.entropy(logits, batch.targets, self.smoothing), batch.tokens)}

    def entropy(self, logits: Float[Tensor, "B C"], targets: Tensor, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """The sum of the cross-entropies, each weighted by its class (by its classes' probabilities)."""
        if self.weights is None:
            return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        found, weights = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing), self.weights
        each = targets @ weights.to(targets) if targets.is_floating_point() else weights.to(logits)[targets]
        return (found * each).sum()

    def fitted(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit a logistic regression."""
        return fit_linear(train, validation, outputs, self.weights)

    def refit_head(self, model: nn.Module, examples: C, fresh: Collection[str], limit: int) -> int:
        """Refit a logistic regression, starting from the trained head."""
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
        """Loss (nats per sample, without smoothing), accuracy, macro F1 and balanced accuracy on a split or `limit` of
        its samples. With rare classes, balanced scores come first.
        """
        logits, right = self.evaluated(model, examples, split, limit)
        nats = float(F.cross_entropy(logits, right, self.weights))
        scores = balanced_scores(logits.argmax(-1).numpy(), right.numpy(), self.rare)
        scores.setdefault(self.goal, 0.0)  # if none of these samples has a rare class
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
        """The confusions of the classes."""
        what = f"{examples.final_split} {self.unit}s"
        return confusions(targets.numpy(), outputs.argmax(-1).numpy(), examples.labels, what)


def stated_split(named: np.ndarray) -> str:
    """The split to evaluate if files assign splits: test, otherwise validation, otherwise "all"."""
    return next((side for side in ("test", "validation") if (named == side_number(side)).any()), "all")


def _with_all_classes(sides: Sides, samples: ClassSamples) -> Sides:
    """The splits, with randomly held-out samples of a class without training samples moved to training, together with
    their duplicates.
    """
    labels, keys = np.array(samples.labels, object), np.array(samples.keys, object)
    lost = set(samples.labels) - set(labels[sides["train"]])
    drawn = samples.named <= side_number("train")
    if not lost or not drawn.any():
        return sides
    stated = set(keys[~drawn])  # held out by the files, so their duplicates are not trained on
    wanted = {keys[row] for row in np.flatnonzero(drawn) if labels[row] in lost} - stated
    back = np.flatnonzero(np.fromiter((key in wanted for key in keys), bool, len(keys)))
    kept = {side: rows[~np.isin(rows, back)] for side, rows in sides.items()}
    return Sides({**kept, "train": np.union1d(kept["train"], back)}, sides.removed)


def check_classes(given: Collection[str], kept: Collection[str], unit: str) -> None:
    """UserError for a class without any readable sample."""
    lost = set(map(plain, given)) - set(map(plain, kept))
    if kept and lost:
        raise UserError(f"no {unit} of the class {min(lost)!r} is readable; add readable {unit}s, or remove the class")
