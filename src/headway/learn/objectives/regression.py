"""One number for each sample, whatever a sample is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from headway.errors import UserError
from headway.learn.examples import Batch, Contents, Numbered, Selected
from headway.learn.objective import Objective, judged
from headway.learn.objectives.classes import HEAD, save_labels
from headway.metrics import correlation_scores
from headway.nn.models import Loss, Transformer


class Valued(Numbered):
    """Samples with a number each. A domain says what the inputs of samples are (`take`) and how people see them."""

    values: Float[np.ndarray, "N"]

    def contents(self) -> Contents:
        return {**super().contents(), "numbers": (self.values,)}

    @property
    def deviation(self) -> float:
        """The standard deviation of the numbers to train on. UserError where they are all the same."""
        trained = self.values[self.splits.sides["train"]]
        found = float(trained.std()) if len(trained) else 1.0
        if found == 0:
            raise UserError(f"all labels are {self.values[0]:g}, so there is nothing to predict; give others")
        return found


V = TypeVar("V", bound=Valued)


class Regression(Objective[V], Generic[V]):
    """Squared error of the one output of the head "classes" in units of the numbers' variance; judged by Spearman's
    correlation.
    """

    goal = "spearman"
    goal_better: Literal["min", "max"] = "max"

    def __init__(self, unit: str, deviation: float) -> None:
        self.unit, self.deviation = unit, deviation

    @property
    def measure(self) -> str:
        return "squared error in units of the variance"

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        said = cast(Transformer, model).output(HEAD, *batch.inputs)[:, 0]
        return {"loss": Loss(((said - batch.targets) / self.deviation).square().sum(), batch.tokens)}

    def said(self, model: nn.Module, samples: Selected) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """The numbers that the model says of samples, and theirs."""
        found, right = torch.zeros(len(samples)), torch.zeros(len(samples))
        for numbers, batch in judged(model, samples):
            found[numbers] = cast(Transformer, model).output(HEAD, *batch.inputs)[:, 0].float().cpu()
            right[numbers] = batch.targets.cpu()
        return found.numpy(), right.numpy()

    def judge(self, model: nn.Module, examples: V, split: str, limit: int | None = None) -> dict[str, Any]:
        """Mean squared error in units of the variance, and both correlations, over a split or `limit` of it."""
        said, right = self.said(model, examples.of(split).some(limit))
        errors = (said - right) / self.deviation
        return {"loss": float(np.square(errors).mean()), **correlation_scores(said, right)}

    def samples(self, model: nn.Module, examples: V, count: int) -> list[dict[str, str]]:
        """Held-out samples with the number that is said and the one that is right."""
        rows = examples.spread(count)
        said, right = self.said(model, Selected(examples, rows))
        return [
            {"source": examples.shown(row), "said": f"{one:.2f}", "given": f"{other:g}"}
            for row, one, other in zip(rows.tolist(), said.tolist(), right.tolist())
        ]

    def save(self, directory: Path) -> None:
        save_labels(directory, ())
