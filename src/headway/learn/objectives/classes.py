"""One class for each sample, whatever a sample is; and the names of classes, in an order that a run keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

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
from headway.learn.examples import Batch, Contents, Numbered, Selected
from headway.learn.objective import Objective, judged
from headway.learn.objectives.linear import fit_linear
from headway.learn.report import Picture
from headway.learn.report.confusion import confusions
from headway.metrics import class_scores
from headway.nn.models import Loss, Transformer
from headway.nn.models.pooled import PooledHead
from headway.nn.parts.projection import Projection

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


def save_labels(directory: Path, labels: tuple[str, ...]) -> None:
    """Write the labels of a classifier, or none for a regression, into the usage.json next to a model."""
    problem = "single_label_classification" if labels else "regression"
    read_usage(directory).for_problem(problem, labels).save(directory)


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
        self.stated = _stated(samples.named)
        samples = replace(samples, labels=self._joined(samples.labels, workspace))
        sides = _with_all_classes(sides_of(samples.keys, samples.named, split), samples)
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
        save_labels(directory, self.labels)


class Predicted(NamedTuple):
    """What a model predicts of N samples of a split, by their rows, and what is right: numbers of classes."""

    model: nn.Module
    split: str
    rows: Int[np.ndarray, "N"]
    said: Int[np.ndarray, "N"]
    right: Int[np.ndarray, "N"]


C = TypeVar("C", bound=Classified)


class Classes(Objective[C], Generic[C]):
    """Cross-entropy of the head "classes" with labels, int64 [B], or with the share of each class, [B, C]; judged by
    accuracy. `smoothing` spreads that share of each label over all classes (Szegedy et al. 2016).
    """

    goal = "accuracy"
    goal_better: Literal["min", "max"] = "max"

    def __init__(self, unit: str, smoothing: float = 0.0) -> None:
        self.unit, self.smoothing = unit, smoothing
        self._evaluated: Predicted | None = None  # last

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits = cast(Transformer, model).output(HEAD, *batch.inputs)
        total = F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=self.smoothing)
        return {"loss": Loss(total, batch.tokens)}

    def logits(self, model: nn.Module, samples: Selected) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N"]]:
        """What the model says of samples, and their classes, on the processor."""
        found, right = torch.zeros(0), torch.zeros(len(samples), dtype=torch.long)
        for numbers, batch in judged(model, samples):
            said = cast(Transformer, model).output(HEAD, *batch.inputs).float().cpu()
            found = found if len(found) else said.new_empty(len(samples), said.shape[-1])
            found[numbers], right[numbers] = said, batch.targets.cpu()
        return found, right

    def fit_head(self, model: nn.Module, examples: C, fresh: Collection[str], limit: int) -> bool:
        """Logistic regression on what the head's last map reads of each sample."""
        head = model.heads[HEAD] if f"heads.{HEAD}.project.weight" in fresh else None  # type: ignore[index]
        if not isinstance(head, PooledHead) or head.config.pool == "tokens":
            return False
        project = cast(Projection, head.project)
        parts = (self._vectors(model, project, examples.of(side).some(limit)) for side in ("train", "validation"))
        fitted = fit_linear(*parts, classes=len(examples.labels))
        with torch.no_grad():
            project.weight.copy_(fitted.weight)
            if project.bias is not None:
                project.bias.copy_(fitted.bias)
        return True

    def _vectors(
        self, model: nn.Module, project: Projection, samples: Selected
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]:
        """What `project` reads of samples, and their classes, on the processor."""
        read, vectors = list[Tensor](), torch.zeros(len(samples), project.weight.shape[1])
        classes = torch.zeros(len(samples), dtype=torch.long)
        hook = project.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            for numbers, batch in judged(model, samples):
                cast(Transformer, model).output(HEAD, *batch.inputs)
                vectors[numbers], classes[numbers] = read.pop().float().cpu(), batch.targets.cpu()
        finally:
            hook.remove()
        return vectors, classes

    def judge(self, model: nn.Module, examples: C, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a sample, without smoothing), accuracy and macro F1 over a split, or `limit` samples of it."""
        some = examples.of(split).some(limit)
        logits, right = self.logits(model, some)
        self._evaluated = Predicted(model, split, some.rows, logits.argmax(-1).numpy(), right.numpy())
        nats = float(F.cross_entropy(logits, right))
        return {"loss": nats, **class_scores(logits.argmax(-1).numpy(), right.numpy())}

    def samples(self, model: nn.Module, examples: C, count: int) -> list[dict[str, str]]:
        """Held-out samples with the class that is said and the one that is right."""
        rows = examples.spread(count)
        said, right = self.logits(model, Selected(examples, rows))
        return [
            {"source": examples.shown(row), "output": examples.labels[one], "reference": examples.labels[other]}
            for row, one, other in zip(rows.tolist(), said.argmax(-1).tolist(), right.tolist())
        ]

    def pictures(self, model: nn.Module, examples: C) -> list[Picture]:
        """What is taken for what on the split that is judged last."""
        found = self.predicted(model, examples)
        return confusions(found.right, found.said, examples.labels, f"{found.split} {self.unit}s")

    def predicted(self, model: nn.Module, examples: C) -> Predicted:
        """The classes of the final split: those of the samples that the score of this model is of, or of all."""
        if self._evaluated is None or self._evaluated[:2] != (model, examples.final_split):
            self.judge(model, examples, examples.final_split)
        assert self._evaluated is not None
        return self._evaluated


def _stated(named: np.ndarray) -> str:
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
