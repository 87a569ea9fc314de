"""Multi-label classification: a binary decision per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.formats.usage import read_usage
from headway.learn.examples import Batch
from headway.learn.objectives.classes import HEAD
from headway.learn.objectives.linear import ITERATIONS, STRENGTHS, LinearHead, minimise
from headway.learn.objectives.predictions import (
    Goals,
    PredictedSamples,
    Prediction,
    PredictionObjective,
    Vectors,
    interleave_classes,
)
from headway.learn.report import Picture
from headway.learn.report.predictions import label_table
from headway.metrics import best_thresholds, label_scores
from headway.nn.models import Loss, ModelConfig, Transformer

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
        weights = None if self.weights is None else self.weights.to(logits)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weights)

    def fit_linear_head(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit a logistic regression for each label."""
        return fit_label_heads(train, validation, self.weights)

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


def fit_label_heads(
    train: tuple[Float[Tensor, "N D"], Float[Tensor, "N C"]],
    validation: tuple[Float[Tensor, "M D"], Float[Tensor, "M C"]],
    weights: Float[Tensor, "C"] | None = None,
) -> LinearHead:
    """A logistic regression with an L2 penalty for each label. All use the same penalty: of four, the one with the
    lowest validation loss. `weights` are the weights for positive samples.
    """

    scale = train[0].double().norm(dim=1).mean().clamp(min=1e-12)
    vectors, held_out = train[0].double() / scale, validation[0].double() / scale
    targets, truth = train[1].double(), validation[1].double()
    positive = None if weights is None else weights.double()
    start = vectors.new_zeros(targets.shape[1], vectors.shape[1]), vectors.new_zeros(targets.shape[1])
    weight, bias = (parameter.requires_grad_() for parameter in start)

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
