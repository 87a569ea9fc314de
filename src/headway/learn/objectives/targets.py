"""Each sample's target (a class, a number or several labels), its loss weights and its goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from headway.config import setting
from headway.data.labels import (
    Target,
    TargetKind,
    infer_target,
    label_set,
    labelled_rows,
    merge_spellings,
    multi_hot,
    parse_numbers,
)
from headway.data.splits import SplitConfig, Splits, split_by_text
from headway.errors import ConfigError, UserError, logger
from headway.formats.usage import ProblemType, read_usage
from headway.learn.examples import Contents, spread_evenly
from headway.learn.objectives.classes import Classification, ClassifiedSamples, ClassSamples, default_split_of
from headway.learn.objectives.predictions import (
    MultiLabel,
    MultiLabelSamples,
    NumberSamples,
    PredictionObjective,
    Regression,
)
from headway.learn.task import Task

_LOG = logger(__name__)
_RARE_FRACTION = 0.2  # maximum frequency of rare classes, relative to equally frequent classes
_RARE_BALANCE = 0.5  # task.balance if some classes are rare: the square root of the inverse frequency
_MAX_NAMED = 3  # maximum rare classes named in a message
_PROBLEM_TYPES: dict[TargetKind, ProblemType] = {
    "class": "single_label_classification",
    "number": "regression",
    "labels": "multi_label_classification",
}
Goal = Literal[
    "auto",
    "accuracy",
    "balanced_accuracy",
    "exact_match",
    "f1",
    "f1_micro",
    "loss",
    "mean_absolute_error",
    "pearson",
    "r2",
    "rare_f1",
    "spearman",
]


@dataclass(frozen=True)
class GroupedConfig:
    """Samples with the same `group`, such as recordings of one speaker, are in one split, so that the scores are for
    new speakers. It is a column of the tables or a regular expression for file names, such as `_(.*)_`, whose part in
    parentheses is the speaker. An expression with a slash is searched in the complete path.
    """

    group: str | None = None  # column, or regular expression for file names, whose value keeps samples in one split


@dataclass(frozen=True)
class TargetConfig(GroupedConfig):
    """The target to predict, and the score that selects the best model. The default `goal` is accuracy for classes (f1
    if some are rare), r2 for numbers (spearman for pairs), and f1_micro for several labels.
    """

    numbers_as_targets: ClassVar[bool] = False  # whether numeric labels are always predicted as numbers
    number_goal: ClassVar[str] = "r2"

    label: str = "label"  # label column, or several comma-separated columns of 0 and 1
    target: Literal["auto", "class", "number", "labels"] = "auto"  # one class, one number, or several labels per sample
    balance: float | Literal["auto"] = (
        "auto"  # class weights: 0 off, 1 fully balanced; auto: 0.5 if some classes are rare
    )
    goal: Goal = "auto"  # score that selects the best model; auto: see above


@setting(TargetConfig, "balance")
def _balance(config: TargetConfig, value: Any) -> TargetConfig:
    """Accept a number from 0 to 1, or true and false for 1 and 0."""
    if value == "auto":
        return replace(config, balance="auto")
    balance = 0.0 if value is None else value
    if not isinstance(balance, (bool, int, float)) or not 0 <= balance <= 1:
        raise ConfigError(f"task.balance is {value!r}; use auto, or a number from 0 (off) to 1 (fully balanced)")
    return replace(config, balance=float(balance))


@setting(TargetConfig, "label")
def _label(config: TargetConfig, value: Any) -> TargetConfig:
    """Accept a name, or a list of names."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"task.label is {value!r}; use a column name")
    return replace(config, label=",".join(names))


class ChosenTarget(NamedTuple):
    """The kind of target and the reason for it, the rows that have a label, int64 [K], and remarks about the other
    rows.
    """

    target: Target
    rows: np.ndarray
    remarks: tuple[str, ...] = ()


def choose_target(
    labels: Sequence[str],
    locate: Callable[[int], str],
    config: TargetConfig,
    noun: str,
    skip: bool,
    folders: bool = False,
) -> ChosenTarget:
    """Determine the kind of target from the labels. Labels that name `folders` are classes. Raises UserError for a
    missing label, unless `skip` allows skipping such samples. `noun` is what a sample is called.
    """
    target_kind = "class" if folders and config.target == "auto" else config.target
    rows = labelled_rows(labels, locate, target_kind, skip, noun)
    remarks = ()
    if len(rows) < len(labels):
        remarks = (f"{len(labels) - len(rows):,} of {len(labels):,} {noun}s have no label and are skipped.",)
        _LOG.warning("%s", remarks[0].removesuffix("."))
    if folders and config.target == "auto":
        return ChosenTarget(Target("class", "the folders are named"), rows, remarks)
    return ChosenTarget(
        infer_target([labels[int(row)] for row in rows], config.target, config.numbers_as_targets), rows, remarks
    )


class TargetSamples(ClassifiedSamples, NumberSamples, MultiLabelSamples):
    """Samples with a class, a number or several labels each. `targets` are class indices int64 [N], numbers float32
    [N], or 0 or 1 for each label, float32 [N, C].
    """

    target: Target
    targets: np.ndarray
    counts: np.ndarray  # training samples per class or label in the existing run; empty for numbers
    target_remarks: tuple[str, ...] = ()

    def set_targets(
        self, samples: ClassSamples, chosen: ChosenTarget, split: SplitConfig, noun: str, remedy: str, workspace: Path
    ) -> None:
        """Set splits and targets. Raises UserError for labels without training samples, fewer than two classes, or
        invalid numbers.
        """
        if chosen.target.kind == "class":
            self.target, self.target_remarks = chosen.target, chosen.remarks
            self.set_labels(samples, split, noun, remedy, workspace)
            self.targets = self.classes
            self.counts = self._label_counts(workspace)
            return
        self.default_split = default_split_of(samples.stated_splits)
        self.splits = Splits(
            split_by_text(samples.keys, samples.stated_splits, split, groups=samples.groups),
            np.arange(len(samples.labels)),
            noun,
            remedy,
        )
        self.assign_targets(samples.labels, chosen, samples.locate, workspace)

    def assign_targets(
        self, labels: Sequence[str], chosen: ChosenTarget, locate: Callable[[int], str], workspace: Path
    ) -> None:
        """Set the targets after the splits. Raises the same errors as `set_targets`."""
        self.target, self.target_remarks = chosen.target, chosen.remarks
        if chosen.target.kind == "class":
            training_labels = {labels[int(row)] for row in self.splits.indices["train"]}
            self.targets = self.classes = self.label_indices(labels, training_labels, locate, workspace)
        elif chosen.target.kind == "number":
            self.labels = ()
            self.targets = self.values = parse_numbers(labels, locate)
        else:
            sets = [label_set(label) for label in labels]
            has_run = (workspace / "recipe.json").exists()
            saved = read_usage(workspace).labels if has_run else ()
            merged = merge_spellings([label for labels in sets for label in labels], saved)
            names = iter(merged.labels)
            sets = [tuple(next(names) for _ in labels) for labels in sets]
            self.spelling_remarks += merged.notes
            self.labels = saved or tuple(sorted({label for labels in sets for label in labels}))
            if not self.labels:
                raise UserError("no sample has a label; add labelled samples")
            self.targets = multi_hot(sets, self.labels, locate)
        self.counts = self._label_counts(workspace)

    def _label_counts(self, workspace: Path) -> np.ndarray:
        """The number of training samples per class or label, taken from the run if it is evaluated on other data."""
        saved_counts = read_usage(workspace).counts if (workspace / "recipe.json").exists() else ()
        if saved_counts and len(saved_counts) == len(self.labels):
            return np.array(saved_counts)
        training_targets = self.targets[self.splits.indices["train"]]
        if self.target.kind == "class":
            return np.bincount(training_targets, minlength=len(self.labels))
        return training_targets.sum(0).astype(np.int64) if self.target.kind == "labels" else np.zeros(0, np.int64)

    def preview(self, count: int) -> list[str]:
        if self.target.kind != "class":
            return super().preview(count)
        rows = spread_evenly(self.splits.all_indices, count).tolist()
        return [f"{self.describe_row(row)} → {self.labels[self.targets[row]]}" for row in rows]

    def class_counts(self) -> Mapping[str, int]:
        if self.target.kind == "number":
            return {}
        size = len(self.labels)
        totals = np.bincount(self.targets, minlength=size) if self.target.kind == "class" else self.targets.sum(0)
        return dict(zip(self.labels, totals.astype(int).tolist()))

    def contents(self) -> Contents:
        if self.target.kind == "number":
            return {"numbers": (self.targets,)}
        return {"labels": (self.labels, self.targets)}

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.target_remarks)

    def save(self, directory: Path) -> None:
        usage = read_usage(directory).with_problem_type(_PROBLEM_TYPES[self.target.kind], self.labels)
        replace(usage, counts=tuple(self.counts.tolist())).save(directory)


def target_task(
    examples: TargetSamples,
    config: TargetConfig,
    unit: str,
    smoothing: float,
    workspace: Path,
    classes: Callable[..., Classification[Any]] = Classification,
) -> Task:
    """A task that predicts the targets in `examples`, with the chosen settings and their reasons. `classes` creates the
    objective for classes.
    """
    target, balance_setting = examples.target, config.balance
    goal_setting = None if config.goal == "auto" else config.goal
    reasons: list[str] = []
    balance: float = 0.0 if balance_setting == "auto" else balance_setting
    objective: PredictionObjective[Any]
    if target.kind == "number":
        goal = goal_setting or config.number_goal
        objective = Regression(unit, goal)
        target_text = f"a number for each {unit}"
    elif target.kind == "labels":
        goal = goal_setting or "f1_micro"
        weights = None
        if balance:  # the weight of samples with a label relative to samples without it, float32 [C]
            total, positive = len(examples.splits.indices["train"]), np.maximum(examples.counts, 1)
            weights = torch.from_numpy(np.maximum((total - positive) / positive, 1e-3) ** balance).float()
        thresholds = read_usage(workspace).thresholds if (workspace / "recipe.json").exists() else ()
        objective = MultiLabel(unit, weights, goal, thresholds)
        target_text = f"any of {len(examples.labels):,} labels for each {unit}, with a threshold per label"
    else:
        counts = examples.counts
        rare = rare_classes(counts)
        if rare and balance_setting == "auto":
            balance = _RARE_BALANCE
        goal = goal_setting or ("f1" if rare else "accuracy")
        weights = class_weights(counts, balance) if balance else None
        objective = classes(unit, smoothing, weights, rare, goal)
        target_text = f"one of {len(examples.labels):,} classes for each {unit}"
        if rare:
            total, names, common = int(counts.sum()), examples.labels, int(counts.argmax())
            rarest = sorted(rare, key=counts.__getitem__)[:_MAX_NAMED]
            names_text = ", ".join(f"{names[row]!r} ({counts[row]:,})" for row in rarest)
            omitted = f" and {len(rare) - _MAX_NAMED:,} more" if len(rare) > _MAX_NAMED else ""
            weighting = (
                f"class weights in the loss (task.balance={balance:g})" if balance else "no class weights in the loss"
            )
            reasons.append(
                f"rare among {total:,} training samples: {names_text}{omitted}; {weighting}, and {goal} selects the "
                f"best model (task.goal={goal}); always predicting {names[common]!r} has an accuracy of "
                f"{counts[common] / total:.1%}"
            )
    alternative = "number or labels" if target.kind == "class" else "class"
    if config.target == "auto":
        reasons.insert(
            0,
            f"predicts {target_text}, because {target.reason} (task.target={target.kind}; otherwise set {alternative})",
        )
    chosen = {"target": target.kind, "balance": balance, "goal": goal}
    return Task(examples, objective, chosen, tuple(reasons))


def rare_classes(counts: np.ndarray) -> tuple[int, ...]:
    """Classes with less than a fifth of the mean number of training samples per class."""
    return tuple(np.flatnonzero(counts < _RARE_FRACTION * counts.sum() / len(counts)).tolist())


def class_weights(counts: np.ndarray, balance: float) -> torch.Tensor:
    """Each class's weight in the loss, float32 [C]: its inverse frequency to the power `balance`, with mean 1 over the
    training samples. A class without samples counts as having one.
    """
    present = np.maximum(counts, 1).astype(np.float64)
    weights = present**-balance
    return torch.from_numpy(weights * present.sum() / (weights * present).sum()).float()
