"""Regression: one number per sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.errors import UserError
from headway.learn.examples import Batch, Selected
from headway.learn.objectives.linear import LinearHead
from headway.learn.objectives.predictions import (
    Goals,
    PredictedSamples,
    Prediction,
    PredictionObjective,
    Vectors,
    head_of,
)
from headway.learn.report import Picture
from headway.learn.report.predictions import scatter_chart
from headway.metrics import number_scores
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig
from headway.nn.parts.projection import Projection

NUMBER = "number"  # name of the head
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalties, relative to the mean square of the vectors
_DIGITS = 4  # digits of numbers in samples


class Valued(PredictedSamples):
    """Samples with one number each. A domain defines their inputs (`take`) and their text for people."""

    values: Float[np.ndarray, "N"]


V = TypeVar("V", bound=Valued)


class Regression(PredictionObjective[V], Generic[V]):
    """Squared error of the head "number", in units of the variance of the training targets: the head scales and shifts
    its output, so it learns standardised targets.
    """

    head = NUMBER
    goals: ClassVar[Goals] = {
        "r2": "max",
        "mean_absolute_error": "min",
        "pearson": "max",
        "spearman": "max",
        "loss": "min",
    }
    scored = "numbers"

    @property
    def measure(self) -> str:
        return "squared error in units of the variance"

    def adapt(self, model: ModelConfig, examples: V) -> ModelConfig:
        """`model` with a regression head with the scale of the training targets. UserError if they are all equal."""
        trained = examples.values[examples.splits.rows("train")].astype(np.float64)
        if trained.min() == trained.max():
            raise UserError(f"all labels are {trained[0]:g}; add samples with other values")
        found = examples.with_head(model, NUMBER, 1)
        assert isinstance(found, TransformerConfig)  # checked by the examples
        head = cast(PooledHeadConfig, found.heads[NUMBER])
        return replace(found, heads={NUMBER: replace(head, scale=float(trained.std()), shift=float(trained.mean()))})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        said = cast(Transformer, model).output(head_of(model, NUMBER), *batch.inputs)[:, 0]
        return {"loss": Loss(((said - batch.targets) / _scaled(model).scale).square().sum(), batch.tokens)}

    def fitted(self, train: Vectors, validation: Vectors, outputs: int) -> LinearHead:
        """Fit a ridge regression."""
        return fit_ridge(train, validation)

    def vectors(self, model: nn.Module, project: Projection, samples: Selected) -> Vectors:
        vectors, targets = super().vectors(model, project, samples)
        head = _scaled(model)
        return vectors, (targets.double() - head.shift) / head.scale

    def judge(self, model: nn.Module, examples: V, split: str, limit: int | None = None) -> dict[str, Any]:
        """Mean squared error in units of the variance, R2, mean absolute error and both correlations on a split or
        `limit` of its samples.
        """
        outputs, targets = self.evaluated(model, examples, split, limit)
        said, right = outputs[:, 0].double().numpy(), targets.double().numpy()
        errors = (said - right) / _scaled(model).scale
        return {"loss": float(np.square(errors).mean()), **number_scores(said, right)}

    def predictions(
        self, examples: V, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        return [
            Prediction(row, f"{one:.{_DIGITS}g}", f"{other:.{_DIGITS}g}")
            for row, one, other in zip(rows.tolist(), outputs[:, 0].tolist(), targets.tolist())
        ]

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        """The largest errors first."""
        return np.argsort(-(outputs[:, 0] - targets).abs().numpy(), kind="stable")

    def charts(self, examples: V, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        """A scatter chart of predicted over actual numbers."""
        caption = f"predicted over actual numbers of the {examples.final_split} {self.unit}s; the dashed line is y = x"
        chart = scatter_chart(targets.numpy(), outputs[:, 0].numpy(), "actual number", "predicted number")
        return [Picture("Predicted numbers", caption, chart)]


def _scaled(model: nn.Module) -> PooledHeadConfig:
    """The configuration of a model's regression head."""
    return cast(PooledHeadConfig, cast(Any, model).heads[head_of(model, NUMBER)].config)


def fit_ridge(
    train: tuple[Float[Tensor, "N D"], Float[Tensor, "N"]], validation: tuple[Float[Tensor, "M D"], Float[Tensor, "M"]]
) -> LinearHead:
    """Least squares with an L2 penalty on the weights, the best of six penalties by the squared error on validation."""
    mean, middle = train[0].double().mean(0), train[1].double().mean()
    vectors, targets = train[0].double() - mean, train[1].double() - middle
    products, right = vectors.T @ vectors, vectors.T @ targets
    unit = products.diagonal().mean().clamp(min=1e-12)
    best: tuple[float, Tensor] | None = None
    for strength in _STRENGTHS:
        penalty = strength * unit * torch.eye(len(products), dtype=products.dtype)
        weight = torch.linalg.solve(products + penalty, right)
        error = ((validation[0].double() - mean) @ weight + middle - validation[1].double()).square().mean().item()
        if best is None or error < best[0]:
            best = error, weight
    assert best is not None
    weight = best[1]
    return LinearHead(weight[None].float(), (middle - mean @ weight)[None].float())
