"""Classification (one class per sample), and the class names, whose order is fixed per run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.data import SplitConfig, Splits, split_by_text
from headway.data.labels import merge_spellings, normalized_label
from headway.data.splits import SplitIndices, split_code
from headway.errors import UserError, nearest
from headway.formats.usage import read_usage
from headway.layout import to_device
from headway.learn.examples import Batch, Contents, IndexedExamples, RowSubset
from headway.learn.objective import Baseline, FinishedHead
from headway.learn.objectives.linear import LinearHead, fit_linear, refit_linear
from headway.learn.objectives.predictions import (
    HEAD,
    Goals,
    PredictedSamples,
    Prediction,
    PredictionObjective,
    Vectors,
    copy_head,
    interleave_classes,
)
from headway.learn.report import Picture
from headway.learn.report.pictures import confusions
from headway.metrics import balanced_scores
from headway.nn.models import Loss, ModelConfig, Transformer

_RECIPE = "recipe.json"  # in a workspace, it shows that the run has started and owns the other files


def unknown_label(label: str, location: str, known: Collection[str]) -> UserError:
    suggestion = nearest(label, known) if len(known) <= 200 else f"there are {len(known)}"
    return UserError(
        f"{location}: label {label!r} does not occur in the training data ({suggestion}); correct it, or add samples"
    )


@dataclass(frozen=True)
class ClassSamples:
    """Each sample's label, its split according to the files, uint8 [N], a key shared by equal samples, its location for
    messages and, if set, its group, which stays in one split.
    """

    labels: Sequence[str]
    stated_splits: np.ndarray
    keys: Sequence[str]
    locate: Callable[[int], str]
    groups: Sequence[str] | None = None


class ClassifiedExamples(IndexedExamples):
    """Samples with one class each. A domain defines their inputs (`take`) and their text for people."""

    labels: tuple[str, ...]
    spelling_remarks: tuple[str, ...] = ()  # which label spellings were merged, for the report
    classes: Int[np.ndarray, "N *T"]  # class index of each sample, or of each of its tokens

    def set_labels(self, samples: ClassSamples, split: SplitConfig, noun: str, remedy: str, workspace: Path) -> None:
        """Set classes and splits. Raises UserError for labels without training samples and for fewer than two
        classes.
        """
        self.default_split = default_split_of(samples.stated_splits)
        names = self._merge_spellings(samples.labels, workspace)
        splits = split_by_text(samples.keys, samples.stated_splits, split, names, samples.groups)
        if samples.groups is None:
            splits = train_on_each_label(splits, [(name,) for name in names], samples.keys, samples.stated_splits)
        self.splits = Splits(splits, np.arange(len(names)), noun, remedy)
        training_labels = {names[int(row)] for row in splits["train"]}
        self.classes = self.label_indices(names, training_labels, samples.locate, workspace)

    def label_indices(
        self, labels: Sequence[str], training_labels: Collection[str], locate: Callable[[int], str], workspace: Path
    ) -> Int[np.ndarray, "K"]:
        """Set the class names from `training_labels`, and return the class indices of `labels`, which `locate` finds
        for messages. Raises UserError for labels without training samples and for fewer than two classes.
        """
        names = dict(zip(labels, self._merge_spellings(labels, workspace)))
        labels, training_labels = [names[label] for label in labels], {names[label] for label in training_labels}
        known = training_labels or set(labels)
        saved = read_usage(workspace).labels
        if saved and ((workspace / _RECIPE).exists() or set(saved) == known):
            self.labels = saved  # those of the existing run, or of the pretrained model, whose head then fits
        elif not known:
            raise UserError("the data contain no samples; add labelled samples")
        elif len(known) < 2:
            raise UserError(f"the data contain only one label, {next(iter(known))!r}; add samples with other labels")
        else:
            are_numeric = all(label.isascii() and label.isdecimal() for label in known)
            by_number = lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)  # noqa: E731
            self.labels = tuple(sorted(known, key=by_number if are_numeric else str))
        indices = {label: number for number, label in enumerate(self.labels)}
        wrong = next((row for row, label in enumerate(labels) if label not in indices), None)
        if wrong is not None:
            raise unknown_label(labels[wrong], locate(wrong), self.labels)
        return np.fromiter((indices[label] for label in labels), np.int64, len(labels))

    def contents(self) -> Contents:
        return {**super().contents(), "labels": (self.labels, self.classes)}

    def _merge_spellings(self, labels: Sequence[str], workspace: Path) -> list[str]:
        """Labels as spelt by the run or model in the workspace; otherwise with one spelling per label."""
        merged = merge_spellings(labels, read_usage(workspace).labels)
        self.spelling_remarks += merged.notes
        return merged.labels

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.spelling_remarks)

    def save(self, directory: Path) -> None:
        read_usage(directory).with_problem_type("single_label_classification", self.labels).save(directory)


class ClassifiedSamples(ClassifiedExamples, PredictedSamples):
    """Samples with one class each. `unlabelled` reads others whose classes are unknown, if there are some."""

    unlabelled: Callable[[], RowSubset] | None = None


C = TypeVar("C", bound=ClassifiedSamples)


class Classification(PredictionObjective[C], Generic[C]):
    """Cross-entropy of the head "classes" with labels, int64 [B], or class probabilities, [B, C].

    `smoothing` is the fraction of each label that is spread over all classes (Szegedy et al. 2016); `weights` [C] are
    class weights in the loss, and `rare` are the classes whose F1 is reported separately.
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
            raise UserError("task.goal=rare_f1, but no class is rare; use f1")

    @property
    def measure(self) -> str:
        return super().measure if self.weights is None else f"{super().measure}, classes weighted"

    def adapt(self, model: ModelConfig, examples: C) -> ModelConfig:
        """`model` with a head that has one output per class."""
        return examples.with_head(model, HEAD, len(examples.labels))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits = cast(Transformer, model).output(HEAD, *batch.inputs)
        return {"loss": Loss(self.entropy(logits, batch.targets, self.smoothing), batch.tokens)}

    def entropy(self, logits: Float[Tensor, "B C"], targets: Tensor, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """The sum of the cross-entropies, each weighted by its class (or by its class probabilities)."""
        if self.weights is None:
            return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        weights = to_device(self.weights.to(logits.dtype), logits.device)
        sample_weights = targets @ weights.to(targets.dtype) if targets.is_floating_point() else weights[targets]
        return (losses * sample_weights).sum()

    def fit_linear_head(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit a logistic regression."""
        return fit_linear(train, validation, outputs, self.weights)

    def finish_head(self, model: nn.Module, examples: C, fresh: Collection[str], limit: int) -> FinishedHead:
        """Refit a logistic regression, starting from the trained head."""
        project = self.fresh_projection(model, fresh)
        parts = [examples.of(split) for split in ("train", "validation")]
        count = sum(map(len, parts))
        if project is None or count > limit or examples.final_split != "test":
            return FinishedHead()
        vectors, classes = (
            torch.cat(parts_of_kind) for parts_of_kind in zip(*(self.features(model, project, part) for part in parts))
        )
        bias = torch.zeros(len(project.weight)) if project.bias is None else project.bias
        current = LinearHead(project.weight.detach().cpu(), bias.detach().cpu())
        copy_head(project, refit_linear(current, (vectors, classes), self.weights))
        return FinishedHead(count)

    def baseline(self, examples: C, limit: int) -> Baseline:
        """Kernel ridge regression on reduced images and sounds."""
        from headway.learn.objectives.baselines import MAX_EVALUATED, input_vectors, ridge_predictions

        train = input_vectors(examples.of("train"), limit)
        held_out = input_vectors(examples.of("validation"), MAX_EVALUATED)
        predicted = ridge_predictions(train, held_out, len(examples.labels))
        accuracy = float((predicted == torch.stack(held_out.targets)).float().mean())
        return Baseline(f"a kernel model of {self.unit}s", "accuracy", accuracy)

    def evaluate(self, model: nn.Module, examples: C, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats per sample, without smoothing), accuracy, macro F1 and balanced accuracy on a split or on `limit`
        of its samples. If there are rare classes, balanced scores come first.
        """
        return self.scores(*self.evaluate_outputs(model, examples, split, limit))

    def scores(self, logits: Float[Tensor, "N C"], targets: Int[Tensor, "N"]) -> dict[str, Any]:
        """The scores of `evaluate` for outputs."""
        nats = float(F.cross_entropy(logits, targets, self.weights))
        scores = balanced_scores(logits.argmax(-1).numpy(), targets.numpy(), self.rare)
        scores.setdefault(self.goal, 0.0)  # if none of these samples belongs to a rare class
        return {**scores, "loss": nats} if self.rare else {"loss": nats, **scores}

    def predictions(
        self, examples: C, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        names = examples.labels
        return [
            Prediction(row, names[predicted], names[actual], predicted == actual)
            for row, predicted, actual in zip(rows.tolist(), outputs.argmax(-1).tolist(), targets.tolist())
        ]

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        return interleave_classes((outputs.argmax(-1) != targets).numpy(), targets.numpy())

    def charts(self, examples: C, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        """Confusions between classes."""
        noun = f"{examples.final_split} {self.unit}s"
        return confusions(targets.numpy(), outputs.argmax(-1).numpy(), examples.labels, noun)


def train_on_each_label(
    splits: SplitIndices, labels: Sequence[Collection[str]], keys: Sequence[str], stated_splits: np.ndarray
) -> SplitIndices:
    """The splits with samples of each label in training. If a label has none, its randomly held-out samples and their
    duplicates, which have equal keys, move there, except for duplicates of samples that the files hold out.
    """
    trained = {label for row in splits["train"].tolist() for label in labels[row]}
    is_random = stated_splits <= split_code("train")
    moved = {keys[row] for row in np.flatnonzero(is_random).tolist() if not trained.issuperset(labels[row])}
    moved -= {keys[row] for row in np.flatnonzero(~is_random).tolist()}
    moved_rows = np.array([row for row, key in enumerate(keys) if key in moved], np.int64)
    if not len(moved_rows):
        return splits
    remaining = {name: rows[~np.isin(rows, moved_rows)] for name, rows in splits.items()}
    return SplitIndices({**remaining, "train": np.union1d(remaining["train"], moved_rows)}, splits.removed)


def default_split_of(stated_splits: np.ndarray) -> str:
    """The split to evaluate if files assign splits: test, otherwise validation, otherwise "all"."""
    return next((split for split in ("test", "validation") if (stated_splits == split_code(split)).any()), "all")


def check_classes(all_classes: Collection[str], readable_classes: Collection[str], unit: str) -> None:
    """Raise UserError for a class without any readable sample."""
    missing = set(map(normalized_label, set(all_classes))) - set(map(normalized_label, set(readable_classes)))
    if readable_classes and missing:
        raise UserError(f"no {unit} in class {min(missing)!r} is readable; add readable {unit}s, or remove the class")
