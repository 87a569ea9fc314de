"""One prediction per sample from a pooled head: the base of such objectives, a number, and several labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.errors import UserError
from headway.formats.usage import read_usage
from headway.layout import to_device
from headway.learn.examples import Batch, IndexedExamples, RowSubset
from headway.learn.objective import Objective, evaluate_batches, evaluation_batches
from headway.learn.objectives.linear import ITERATIONS, STRENGTHS, LinearHead, minimise
from headway.learn.report import Picture
from headway.learn.report.pictures import label_table, scatter_chart
from headway.metrics import best_thresholds, label_scores, number_scores
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig
from headway.nn.models.pooled import PooledHead
from headway.nn.parts.projection import Projection

HEAD = "classes"  # name of the head with an output per class or label
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
    shares_evaluation = True
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

        def compute(indices: np.ndarray, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            output = cast(Transformer, model).output(name, *batch.inputs)
            return torch.from_numpy(indices), output.float().cpu(), batch.targets.cpu()

        for indices, batch_outputs, targets in evaluate_batches(model, samples, compute):
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


NUMBER = "number"  # name of the head
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalties, relative to the vectors' mean square
_MIN_NUMBERS = 2  # for a correlation
_DIGITS = 4  # digits per number in samples


class NumberSamples(PredictedSamples):
    """Samples with one number each. A domain defines their inputs (`take`) and their text for people."""

    values: Float[np.ndarray, "N"]


V = TypeVar("V", bound=NumberSamples)


class Regression(PredictionObjective[V], Generic[V]):
    """Squared error on the head "number", in units of the training targets' variance. The head scales and shifts its
    output, so it learns standardised targets.
    """

    head = NUMBER
    goals: ClassVar[Goals] = {
        "r2": "max",
        "mean_absolute_error": "min",
        "pearson": "max",
        "spearman": "max",
        "loss": "min",
    }
    target_name = "numbers"

    @property
    def measure(self) -> str:
        return "squared error in units of the variance"

    def adapt(self, model: ModelConfig, examples: V) -> ModelConfig:
        """`model` with a regression head scaled to the training targets. Raises UserError if they are all equal, and
        for a held-out split of one sample.
        """
        training_values = examples.values[examples.splits.rows("train")].astype(np.float64)
        if training_values.min() == training_values.max():
            raise UserError(f"all labels are {training_values[0]:g}; add samples with other values")
        for split in ("validation", examples.final_split):
            if len(examples.splits.rows(split)) < _MIN_NUMBERS:
                raise UserError(
                    f"the {split} split has one sample, too few for a correlation; add samples, or raise "
                    f"task.split.{split}"
                )
        adapted = examples.with_head(model, NUMBER, 1)
        assert isinstance(adapted, TransformerConfig)  # checked by the examples
        head = cast(PooledHeadConfig, adapted.heads[NUMBER])
        return replace(
            adapted,
            heads={NUMBER: replace(head, scale=float(training_values.std()), shift=float(training_values.mean()))},
        )

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        predicted = cast(Transformer, model).output(head_name(model, NUMBER), *batch.inputs)[:, 0]
        return {"loss": Loss(((predicted - batch.targets) / _head_config(model).scale).square().sum(), batch.tokens)}

    def fit_linear_head(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit least squares with an L2 penalty on the weights; of six penalties, the one with the lowest squared
        validation error.
        """
        mean, target_mean = train[0].double().mean(0), train[1].double().mean()
        vectors, targets = train[0].double() - mean, train[1].double() - target_mean
        products, products_with_targets = vectors.T @ vectors, vectors.T @ targets
        unit = products.diagonal().mean().clamp(min=1e-12)
        held_out, truth = validation[0].double() - mean, validation[1].double()
        best: tuple[float, Tensor] | None = None
        for strength in _PENALTIES:
            penalty = strength * unit * torch.eye(len(products), dtype=products.dtype)
            weight = torch.linalg.solve(products + penalty, products_with_targets)
            error = (held_out @ weight + target_mean - truth).square().mean().item()
            if best is None or error < best[0]:
                best = error, weight
        assert best is not None
        weight = best[1]
        return LinearHead(weight[None].float(), (target_mean - mean @ weight)[None].float())

    def features(self, model: nn.Module, project: Projection, samples: RowSubset) -> Vectors:
        vectors, targets = super().features(model, project, samples)
        head = _head_config(model)
        return vectors, (targets.double() - head.shift) / head.scale

    def evaluate(self, model: nn.Module, examples: V, split: str, limit: int | None = None) -> dict[str, Any]:
        """Mean squared error in units of the variance, R2, mean absolute error and both correlations on a split or on
        `limit` of its samples.
        """
        outputs, targets = self.evaluate_outputs(model, examples, split, limit)
        predicted, actual = outputs[:, 0].double().numpy(), targets.double().numpy()
        errors = (predicted - actual) / _head_config(model).scale
        return {"loss": float(np.square(errors).mean()), **number_scores(predicted, actual)}

    def predictions(
        self, examples: V, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        return [
            Prediction(row, f"{predicted:.{_DIGITS}g}", f"{actual:.{_DIGITS}g}")
            for row, predicted, actual in zip(rows.tolist(), outputs[:, 0].tolist(), targets.tolist())
        ]

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        """The largest errors first."""
        return np.argsort(-(outputs[:, 0] - targets).abs().numpy(), kind="stable")

    def charts(self, examples: V, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        """A scatter chart of predicted against actual numbers."""
        caption = f"predicted against actual numbers, {examples.final_split} {self.unit}s; the dashed line is y = x"
        chart = scatter_chart(targets.numpy(), outputs[:, 0].numpy(), "actual number", "predicted number")
        return [Picture("Predicted numbers", caption, chart)]


def _head_config(model: nn.Module) -> PooledHeadConfig:
    """The configuration of the model's regression head."""
    return cast(PooledHeadConfig, cast(Any, model).heads[head_name(model, NUMBER)].config)


_NO_LABEL = "(no label)"


class MultiLabelSamples(PredictedSamples):
    """Samples with any number of labels each."""

    labels: tuple[str, ...]


M = TypeVar("M", bound=MultiLabelSamples)


class MultiLabel(PredictionObjective[M], Generic[M]):
    """Binary cross-entropy of each output of the head "classes".

    `weights` [C] are the weights for positive samples. `thresholds` are the minimum probabilities of predicted labels;
    if empty, the best thresholds for the evaluated samples are used.
    """

    head = HEAD
    goals: ClassVar[Goals] = {"f1_micro": "max", "f1": "max", "exact_match": "max", "loss": "min"}
    target_name = "several labels"

    def __init__(
        self,
        unit: str,
        weights: Float[Tensor, "C"] | None = None,
        goal: str = "f1_micro",
        thresholds: Sequence[float] = (),
    ) -> None:
        super().__init__(unit, goal)
        self.weights, self.thresholds = weights, tuple(thresholds)

    @property
    def measure(self) -> str:
        return "nats per label" if self.weights is None else "nats per label, labels weighted"

    def adapt(self, model: ModelConfig, examples: M) -> ModelConfig:
        """`model` with a head that has one output per label."""
        return examples.with_head(model, HEAD, len(examples.labels))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits = cast(Transformer, model).output(HEAD, *batch.inputs)
        return {"loss": Loss(self._entropy(logits, batch.targets).sum() / logits.shape[1], batch.tokens)}

    def _entropy(self, logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        weights = None if self.weights is None else to_device(self.weights.to(logits.dtype), logits.device)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weights)

    def fit_linear_head(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit a logistic regression with an L2 penalty for each label. All use the same penalty: of four, the one with
        the lowest validation loss.
        """
        scale = train[0].double().norm(dim=1).mean().clamp(min=1e-12)
        vectors, held_out = train[0].double() / scale, validation[0].double() / scale
        targets, truth = train[1].double(), validation[1].double()
        positive = None if self.weights is None else self.weights.double()
        weight = vectors.new_zeros(targets.shape[1], vectors.shape[1]).requires_grad_()
        bias = vectors.new_zeros(targets.shape[1]).requires_grad_()

        def loss(inputs: Tensor, labels: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(F.linear(inputs, weight, bias), labels, pos_weight=positive)

        best: tuple[float, Tensor, Tensor] | None = None
        for strength in STRENGTHS:
            penalty = 2 * strength * targets.numel()
            minimise(
                lambda penalty=penalty: loss(vectors, targets) + weight.square().sum() / penalty,
                [weight, bias],
                ITERATIONS,
                1e-6,
                1e-9,
            )
            with torch.no_grad():
                validation_loss = loss(held_out, truth).item()
                if best is None or validation_loss < best[0]:
                    best = validation_loss, weight.clone(), bias.clone()
        assert best is not None
        return LinearHead((best[1] / scale).float(), best[2].float())

    def evaluate(self, model: nn.Module, examples: M, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats per label), micro and macro F1, precision, recall and exact match on a split or on `limit` of its
        samples.
        """
        logits, targets = self.evaluate_outputs(model, examples, split, limit)
        scores, truth = logits.sigmoid().numpy(), targets.bool().numpy()
        thresholds = self.thresholds or best_thresholds(scores, truth)
        return {"loss": float(self._entropy(logits, targets).mean()), **label_scores(scores >= thresholds, truth)}

    def calibrate(self, model: nn.Module, examples: M, directory: Path) -> list[str]:
        """Choose the thresholds on the validation split, and save them in usage.json."""
        logits, targets = self.outputs(model, examples.of("validation"))
        best = best_thresholds(logits.sigmoid().numpy(), targets.bool().numpy())
        self.thresholds = tuple(round(threshold, 6) for threshold in best)
        replace(read_usage(directory), thresholds=self.thresholds).save(directory)
        return []

    def _decide(self, outputs: Float[Tensor, "N C"]) -> np.ndarray:
        return outputs.sigmoid().numpy() >= np.array(self.thresholds or 0.5)

    def predictions(
        self, examples: M, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        label_texts = [
            [", ".join(name for name, has in zip(examples.labels, row) if has) or _NO_LABEL for row in table.tolist()]
            for table in (self._decide(outputs), targets.bool().numpy())
        ]
        return [
            Prediction(row, predicted, actual, predicted == actual)
            for row, predicted, actual in zip(rows.tolist(), *label_texts)
        ]

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        """One sample for each wrong label before a second one for any. A sample counts for its first wrong label,
        otherwise for its first label.
        """
        truth = targets.bool().numpy()
        differs = self._decide(outputs) != truth
        wrong = differs.any(1)
        kind = np.where(wrong, differs.argmax(1), np.where(truth.any(1), truth.argmax(1), truth.shape[1]))
        return interleave_classes(wrong, kind)

    def charts(self, examples: M, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        """Scores per label."""
        thresholds = self.thresholds or (0.5,) * len(examples.labels)
        noun = f"{examples.final_split} {self.unit}s"
        return [label_table(self._decide(outputs), targets.bool().numpy(), examples.labels, thresholds, noun)]
