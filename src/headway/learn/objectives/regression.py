"""Regression: one number per sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.errors import UserError
from headway.learn.examples import Batch, RowSubset
from headway.learn.objectives.linear import LinearHead
from headway.learn.objectives.predictions import (
    Goals,
    PredictedSamples,
    Prediction,
    PredictionObjective,
    Vectors,
    head_name,
)
from headway.learn.report import Picture
from headway.learn.report.predictions import scatter_chart
from headway.metrics import number_scores
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig
from headway.nn.parts.projection import Projection

NUMBER = "number"  # name of the head
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalties, relative to the vectors' mean square
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
        """`model` with a regression head scaled to the training targets. Raises UserError if they are all equal."""
        training_values = examples.values[examples.splits.rows("train")].astype(np.float64)
        if training_values.min() == training_values.max():
            raise UserError(f"all labels are {training_values[0]:g}; add samples with other values")
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
        """Fit a ridge regression."""
        return fit_ridge(train, validation)

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


def fit_ridge(
    train: tuple[Float[Tensor, "N D"], Float[Tensor, "N"]], validation: tuple[Float[Tensor, "M D"], Float[Tensor, "M"]]
) -> LinearHead:
    """Least squares with an L2 penalty on the weights; of six penalties, the one with the lowest squared validation
    error.
    """
    mean, target_mean = train[0].double().mean(0), train[1].double().mean()
    vectors, targets = train[0].double() - mean, train[1].double() - target_mean
    products, products_with_targets = vectors.T @ vectors, vectors.T @ targets
    unit = products.diagonal().mean().clamp(min=1e-12)
    best: tuple[float, Tensor] | None = None
    for strength in _PENALTIES:
        penalty = strength * unit * torch.eye(len(products), dtype=products.dtype)
        weight = torch.linalg.solve(products + penalty, products_with_targets)
        error = ((validation[0].double() - mean) @ weight + target_mean - validation[1].double()).square().mean().item()
        if best is None or error < best[0]:
            best = error, weight
    assert best is not None
    weight = best[1]
    return LinearHead(weight[None].float(), (target_mean - mean @ weight)[None].float())
