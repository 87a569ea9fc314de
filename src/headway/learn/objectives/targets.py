"""The target of each sample (a class, a number or several labels), its loss weights and its goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from headway.config import setting
from headway.data.spellings import join_spellings
from headway.data.splits import SplitConfig, Splits, sides_of
from headway.data.targets import Target, TargetKind, kept_rows, label_set, many_hot, numbers, target_of
from headway.errors import ConfigError, UserError, logger
from headway.formats.usage import ProblemType, read_usage
from headway.learn.examples import Contents
from headway.learn.objectives.classes import Classes, ClassifiedSamples, ClassSamples, stated_split
from headway.learn.objectives.labels import LabelledSamples, Labels
from headway.learn.objectives.predictions import PredictionObjective
from headway.learn.objectives.regression import Regression, Valued
from headway.learn.task import Task

_LOG = logger(__name__)
_RARE = 0.2  # maximum frequency of rare classes, relative to equally frequent classes
_WEIGHED = 0.5  # task.balance if classes are rare: the square root of the inverse frequency
_NAMED = 3  # maximum rare classes that a message names
_PROBLEMS: dict[TargetKind, ProblemType] = {
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
class TargetConfig:
    """The target to predict, and the score that selects the best model. The default `goal` is accuracy for classes (f1
    if some are rare), r2 for numbers (spearman for pairs), and f1_micro for several labels.
    """

    every_number: ClassVar[bool] = False  # whether labels that are numbers are always predicted as numbers
    number_goal: ClassVar[str] = "r2"

    label: str = "label"  # column of the labels; several columns of 0 and 1 separated by commas
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
    found = 0.0 if value is None else value
    if not isinstance(found, (bool, int, float)) or not 0 <= found <= 1:
        raise ConfigError(f"task.balance is {value!r}; use auto, or a number from 0 (off) to 1 (fully balanced)")
    return replace(config, balance=float(found))


@setting(TargetConfig, "label")
def _label(config: TargetConfig, value: Any) -> TargetConfig:
    """Accept a name, or a list of names."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"task.label is {value!r}; use the name of a column")
    return replace(config, label=",".join(names))


class ChosenTarget(NamedTuple):
    """The kind of target and the reason, the rows that have a label, int64 [K], and remarks about the others."""

    target: Target
    rows: np.ndarray
    remarks: tuple[str, ...] = ()


def choose_target(
    labels: Sequence[str],
    place: Callable[[int], str],
    config: TargetConfig,
    what: str,
    skip: bool,
    folders: bool = False,
) -> ChosenTarget:
    """Determine the kind of target from the labels. Labels that name `folders` are classes. UserError for a missing
    label, unless `skip` allows skipping such samples. `noun` is the name of a sample.
    """
    wanted = "class" if folders and config.target == "auto" else config.target
    rows = kept_rows(labels, place, wanted, skip, what)
    remarks = ()
    if len(rows) < len(labels):
        remarks = (f"{len(labels) - len(rows):,} of {len(labels):,} {what}s have no label and are skipped.",)
        _LOG.warning("%s", remarks[0].removesuffix("."))
    if folders and config.target == "auto":
        return ChosenTarget(Target("class", "the folders are named"), rows, remarks)
    return ChosenTarget(
        target_of([labels[int(row)] for row in rows], config.target, config.every_number), rows, remarks
    )


class TargetSamples(ClassifiedSamples, Valued, LabelledSamples):
    """Samples with a class, a number or several labels each; `targets` are class indices int64 [N], numbers float32
    [N], or 0 or 1 for each label, float32 [N, C].
    """

    target: Target
    targets: np.ndarray
    counts: np.ndarray  # training samples per class or label, of the existing run; empty for numbers
    noted: tuple[str, ...] = ()

    def settle(
        self, samples: ClassSamples, chosen: ChosenTarget, split: SplitConfig, what: str, give: str, workspace: Path
    ) -> None:
        """Set splits and targets. UserError for labels without training samples, fewer than two classes, or invalid
        numbers.
        """
        if chosen.target.kind == "class":
            self.target, self.noted = chosen.target, chosen.remarks
            self.label(samples, split, what, give, workspace)
            self.targets = self.classes
            self.counts = self._counted(workspace)
            return
        self.stated = stated_split(samples.named)
        self.splits = Splits(sides_of(samples.keys, samples.named, split), np.arange(len(samples.labels)), what, give)
        self.assign(samples.labels, chosen, samples.place, workspace)

    def assign(self, labels: Sequence[str], chosen: ChosenTarget, place: Callable[[int], str], workspace: Path) -> None:
        """Set the targets after the splits. Raises as `set_targets` does."""
        self.target, self.noted = chosen.target, chosen.remarks
        if chosen.target.kind == "class":
            trained = {labels[int(row)] for row in self.splits.sides["train"]}
            self.targets = self.classes = self.numbered(labels, trained, place, workspace)
        elif chosen.target.kind == "number":
            self.labels = ()
            self.targets = self.values = numbers(labels, place)
        else:
            sets = [label_set(label) for label in labels]
            flat = join_spellings([label for labels in sets for label in labels])
            names = iter(flat.labels)
            sets = [tuple(next(names) for _ in labels) for labels in sets]
            self.joined += flat.remarks
            begun = (workspace / "recipe.json").exists()
            saved = read_usage(workspace).labels if begun else ()
            self.labels = saved or tuple(sorted({label for labels in sets for label in labels}))
            if not self.labels:
                raise UserError("no sample has a label; add labelled samples")
            self.targets = many_hot(sets, self.labels, place)
        self.counts = self._counted(workspace)

    def _counted(self, workspace: Path) -> np.ndarray:
        """The training samples per class or label; those of the run if it is evaluated on other data."""
        known = read_usage(workspace).counts if (workspace / "recipe.json").exists() else ()
        if known and len(known) == len(self.labels):
            return np.array(known)
        trained = self.targets[self.splits.sides["train"]]
        if self.target.kind == "class":
            return np.bincount(trained, minlength=len(self.labels))
        return trained.sum(0).astype(np.int64) if self.target.kind == "labels" else np.zeros(0, np.int64)

    def contents(self) -> Contents:
        if self.target.kind == "number":
            return {"numbers": (self.targets,)}
        return {"labels": (self.labels, self.targets)}

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.noted)

    def save(self, directory: Path) -> None:
        usage = read_usage(directory).for_problem(_PROBLEMS[self.target.kind], self.labels)
        replace(usage, counts=tuple(self.counts.tolist())).save(directory)


def target_task(
    examples: TargetSamples,
    config: TargetConfig,
    unit: str,
    smoothing: float,
    workspace: Path,
    classes: Callable[..., Classes[Any]] = Classes,
) -> Task:
    """The task of predicting the targets of `examples`, with the chosen settings and their reasons. `classes` creates
    the objective for classes.
    """
    target, given = examples.target, config.balance
    wanted = None if config.goal == "auto" else config.goal
    reasons: list[str] = []
    balance: float = 0.0 if given == "auto" else given
    objective: PredictionObjective[Any]
    if target.kind == "number":
        goal = wanted or config.number_goal
        objective = Regression(unit, goal)
        what = f"a number for each {unit}"
    elif target.kind == "labels":
        goal = wanted or "f1_micro"
        weights = _label_weights(examples, balance) if balance else None
        thresholds = read_usage(workspace).thresholds if (workspace / "recipe.json").exists() else ()
        objective = Labels(unit, weights, goal, thresholds)
        what = f"any of {len(examples.labels):,} labels for each {unit}, with a threshold per label"
    else:
        counts = examples.counts
        rare = rare_classes(counts)
        if rare and given == "auto":
            balance = _WEIGHED
        goal = wanted or ("f1" if rare else "accuracy")
        weights = class_weights(counts, balance) if balance else None
        objective = classes(unit, smoothing, weights, rare, goal)
        what = f"one of {len(examples.labels):,} classes for each {unit}"
        if rare:
            reasons.append(_rarity(examples, counts, rare, balance, goal))
    other = "number or labels" if target.kind == "class" else "class"
    if config.target == "auto":
        reasons.insert(0, f"predicts {what}, as {target.reason} (task.target={target.kind}; otherwise set {other})")
    chosen = {"target": target.kind, "balance": balance, "goal": goal}
    return Task(examples, objective, chosen, tuple(reasons))


def rare_classes(counts: np.ndarray) -> tuple[int, ...]:
    """The classes with less than a fifth of the mean number of training samples per class."""
    return tuple(np.flatnonzero(counts < _RARE * counts.sum() / len(counts)).tolist())


def class_weights(counts: np.ndarray, balance: float) -> torch.Tensor:
    """The weight of each class in the loss, float32 [C]: its inverse frequency to the power `balance`, with mean 1 over
    the training samples. A class without samples counts as having one.
    """
    present = np.maximum(counts, 1).astype(np.float64)
    weights = present**-balance
    return torch.from_numpy(weights * present.sum() / (weights * present).sum()).float()


def _label_weights(examples: TargetSamples, balance: float) -> torch.Tensor:
    """The weight of samples that have a label, relative to those that do not, float32 [C]."""
    total, having = len(examples.splits.sides["train"]), np.maximum(examples.counts, 1)
    return torch.from_numpy(np.maximum((total - having) / having, 1e-3) ** balance).float()


def _rarity(examples: TargetSamples, counts: np.ndarray, rare: Sequence[int], balance: float, goal: str) -> str:
    """A sentence about rare classes, for people."""
    total, names = int(counts.sum()), examples.labels
    shown = ", ".join(f"{names[row]!r} ({counts[row]:,})" for row in sorted(rare, key=counts.__getitem__)[:_NAMED])
    more = f" and {len(rare) - _NAMED:,} more" if len(rare) > _NAMED else ""
    common = int(counts.argmax())
    weighed = f"class weights in the loss (task.balance={balance:g})" if balance else "no class weights in the loss"
    return (
        f"rare among {total:,} training samples: {shown}{more}; {weighed}, and {goal} selects the best model "
        f"(task.goal={goal}); always predicting {names[common]!r} has an accuracy of {counts[common] / total:.1%}"
    )
