"""One prediction per sample from a pooled head: the base for classification, regression and multi-label tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.errors import UserError
from headway.learn.examples import IndexedExamples, RowSubset
from headway.learn.objective import Objective, evaluation_batches
from headway.learn.objectives.linear import LinearHead
from headway.learn.report import Picture
from headway.nn.models import ModelConfig, Transformer
from headway.nn.models.pooled import PooledHead
from headway.nn.parts.projection import Projection

_MAX_CANDIDATES = 1000  # maximum candidates for the report's samples
Goals = Mapping[str, Literal["min", "max"]]  # scores, and their better direction
Vectors = tuple[Float[Tensor, "N D"], Tensor]


class Prediction(NamedTuple):
    """The predicted and the correct output for a row, for people; `is_correct` is None if it does not apply."""

    row: int
    output: str
    reference: str
    is_correct: bool | None = None


class PredictedSamples(IndexedExamples):
    """Samples with one prediction each. A domain adds heads to its models and draws pictures of samples."""

    def with_head(self, model: ModelConfig, name: str, outputs: int) -> ModelConfig:
        """`model` with one head `name` that has `outputs` outputs per sample."""
        raise NotImplementedError

    def gallery(self, model: nn.Module, predictions: Sequence[Prediction]) -> list[Picture]:
        """Pictures of some samples with their predictions."""
        return []


P = TypeVar("P", bound=PredictedSamples)


class PredictionObjective(Objective[P], Generic[P]):
    """An objective on the outputs of the pooled head `head`.

    `goals` are the scores that may select the best model, and their better direction.
    """

    small_data_lr = True
    head: str
    goals: ClassVar[Goals]

    def __init__(self, unit: str, goal: str) -> None:
        if goal not in self.goals:
            known = ", ".join(self.goals)
            raise UserError(f"task.goal is {goal!r}, which is not a score for {self.target_name}; use one of {known}")
        self.unit, self.goal, self.goal_better = unit, goal, self.goals[goal]

    target_name: str = "classes"
    _last_evaluation: tuple[nn.Module, str, RowSubset, Float[Tensor, "N C"], Tensor] | None = None  # last

    def outputs(self, model: nn.Module, samples: RowSubset) -> tuple[Float[Tensor, "N C"], Tensor]:
        """The head's outputs for samples, and their targets, on the CPU."""
        outputs, all_targets, name = torch.zeros(0), torch.zeros(0), head_name(model, self.head)
        for indices, batch in evaluation_batches(model, samples):
            batch_outputs, targets = (
                cast(Transformer, model).output(name, *batch.inputs).float().cpu(),
                batch.targets.cpu(),
            )
            if not len(outputs):
                outputs = batch_outputs.new_empty(len(samples), batch_outputs.shape[-1])
                all_targets = targets.new_empty(len(samples), *targets.shape[1:])
            outputs[indices], all_targets[indices] = batch_outputs, targets
        return outputs, all_targets

    def evaluate_outputs(
        self, model: nn.Module, examples: P, split: str, limit: int | None
    ) -> tuple[Float[Tensor, "N C"], Tensor]:
        """`outputs` for a split or for `limit` of its samples; pictures of this model reuse them."""
        samples = examples.of(split).limited_to(limit)
        self._last_evaluation = model, split, samples, *self.outputs(model, samples)
        return self._last_evaluation[3:]

    def fit_head(self, model: nn.Module, examples: P, fresh: Collection[str], limit: int) -> bool:
        """Fit the head's last linear layer to its inputs."""
        project = self.fresh_projection(model, fresh)
        if project is None:
            return False
        train, validation = (
            self.features(model, project, examples.of(split).limited_to(limit)) for split in ("train", "validation")
        )
        copy_head(project, self.fit_linear_head(train, validation, project.weight.shape[0]))
        return True

    def fresh_projection(self, model: nn.Module, fresh: Collection[str]) -> Projection | None:
        """The head's last linear layer, if it is newly initialised (in `fresh`) and reads one vector per sample."""
        head = model.heads[self.head] if f"heads.{self.head}.project.weight" in fresh else None  # type: ignore[index]
        if not isinstance(head, PooledHead) or head.config.pool == "tokens":
            return None
        return cast(Projection, head.project)

    def fit_linear_head(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit a linear map from vectors to outputs, selected on the validation split."""
        raise NotImplementedError

    def features(self, model: nn.Module, project: Projection, samples: RowSubset) -> Vectors:
        """The inputs of `project` for samples, and their targets, on the CPU."""
        captured, vectors, all_targets = (
            list[Tensor](),
            torch.zeros(len(samples), project.weight.shape[1]),
            torch.zeros(0),
        )
        hook = project.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        try:
            for indices, batch in evaluation_batches(model, samples):
                cast(Transformer, model).output(self.head, *batch.inputs)
                targets = batch.targets.cpu()
                all_targets = all_targets if len(all_targets) else targets.new_empty(len(samples), *targets.shape[1:])
                vectors[indices], all_targets[indices] = captured.pop().float().cpu(), targets
        finally:
            hook.remove()
        return vectors, all_targets

    def predictions(
        self, examples: P, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        """The predicted and correct outputs for rows."""
        raise NotImplementedError

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        """Samples ordered by how interesting they are for the report."""
        raise NotImplementedError

    def samples(self, model: nn.Module, examples: P, count: int) -> list[dict[str, str]]:
        """Held-out samples with predicted and correct outputs: errors first, one per class."""
        samples = examples.of(examples.final_split).limited_to(_MAX_CANDIDATES)
        outputs, targets = self.outputs(model, samples)
        chosen = self.errors_first(outputs, targets)[:count]
        predictions = self.predictions(examples, samples.rows[chosen], outputs[chosen], targets[chosen])
        return [
            {
                "source": examples.describe_row(prediction.row),
                "output": prediction.output,
                "reference": prediction.reference,
            }
            for prediction in predictions
        ]

    def pictures(self, model: nn.Module, examples: P) -> list[Picture]:
        """Charts of scores per class or label, or of predicted numbers, and some samples. They use the samples in the
        final split that the model was evaluated on, or all of them.
        """
        if self._last_evaluation is None or self._last_evaluation[:2] != (model, examples.final_split):
            self.evaluate_outputs(model, examples, examples.final_split, None)
        assert self._last_evaluation is not None
        samples, outputs, targets = self._last_evaluation[2:]
        predictions = self.predictions(examples, samples.rows, outputs, targets)
        return [*self.charts(examples, outputs, targets), *examples.gallery(model, predictions)]

    def charts(self, examples: P, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        """Charts of the outputs on the final split."""
        raise NotImplementedError


def copy_head(project: Projection, head: LinearHead) -> None:
    """Copy a fitted head's weights into a linear layer."""
    with torch.no_grad():
        project.weight.copy_(head.weight)
        if project.bias is not None:
            project.bias.copy_(head.bias)


def head_name(model: nn.Module, name: str) -> str:
    """The head `name`, or "classes" in runs from versions without separate regression heads."""
    return name if name in cast(Transformer, model).heads else "classes"


def interleave_classes(wrong: np.ndarray, classes: np.ndarray) -> Int[np.ndarray, "N"]:
    """Samples in the order to show: `wrong` ones before the others. Both groups start with one sample from each class,
    rarest first, before a second one from any class.
    """
    counts = np.bincount(classes)
    rank = np.zeros(len(classes), np.int64)  # how many from the same group and class come before it
    for group in (wrong, ~wrong):
        for label in np.unique(classes[group]):
            rows = np.flatnonzero(group & (classes == label))
            rank[rows] = np.arange(len(rows))
    return np.lexsort((classes, counts[classes], rank, ~wrong))
