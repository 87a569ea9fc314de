"""Quantile forecasts of the next numbers of a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from headway.learn.examples import Batch, Numbered, Selected
from headway.learn.objective import Objective, judged
from headway.learn.report import Picture
from headway.learn.report.charts import Panel, drawable, fans
from headway.metrics.forecasts import forecast_scores
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig

HEAD = "quantiles"
_DRAWN, _TOLD = 6, 8  # maximum forecasts in a report, and maximum values in a line of text


class Around(NamedTuple):
    """Samples in the scale of the data: the numbers `before` and `after`, which of the latter are `valid`, the `naive`
    forecast, and the `scale` of errors, NaN if undefined.
    """

    before: Float[np.ndarray, "B C"]
    after: Float[np.ndarray, "B S"]
    there: Bool[np.ndarray, "B S"]
    naive: Float[np.ndarray, "B S"]
    scale: Float[np.ndarray, "B"]


class Continued(Numbered):
    """Samples whose next `horizon` numbers are to be predicted. A domain defines the inputs of samples and the scale of
    the predictions (`take`).
    """

    horizon: int

    def around(self, rows: np.ndarray) -> Around:
        raise NotImplementedError

    def scaled(self, rows: np.ndarray, said: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """Predicted quantiles of rows in the scale of the data."""
        raise NotImplementedError

    def latest(self, count: int) -> np.ndarray:
        """The last rows of the final split, one for each of `count` series; several without overlap if there is only
        one series.
        """
        raise NotImplementedError

    def times(self, row: int) -> Shaped[np.ndarray, "C+S"]:
        """The times of the numbers before and after, for the axis of a picture."""
        raise NotImplementedError

    def final(self, rows: np.ndarray, said: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """The final forecast of rows from the model's quantiles in the scale of the data."""
        return said

    def baselines(self, rows: np.ndarray) -> dict[str, Float[np.ndarray, "B S Q"]]:
        """Forecasts of rows by simple methods in addition to the naive one, by name."""
        return {}

    def settle(self, rows: np.ndarray, said: Float[np.ndarray, "B S Q"]) -> str:
        """Choose on the validation rows how `final_forecast` uses the model's quantiles; returns a line for people."""
        return ""


C = TypeVar("C", bound=Continued)


class Quantiles(Objective[C], Generic[C]):
    """Twice the pinball loss (Koenker and Bassett 1978) of the head "quantiles", averaged over the levels; for the
    median it is the absolute error. Targets are the numbers for each quantile, Float[B, S, Q], and which are valid,
    Bool[B, S].
    """

    def __init__(self, levels: Sequence[float], unit: str = "value") -> None:
        self.levels, self.unit = tuple(levels), unit

    @property
    def measure(self) -> str:
        return f"pinball loss per {self.unit}"

    def adapt(self, model: ModelConfig, examples: C) -> ModelConfig:
        """`model` with a head for the horizon and the levels."""
        assert isinstance(model, TransformerConfig)  # checked by the examples
        head = cast(PooledHeadConfig, model.heads[HEAD])
        return replace(model, heads={HEAD: replace(head, outputs=examples.horizon * len(self.levels))})

    def said(self, model: nn.Module, inputs: Sequence[Any]) -> Float[Tensor, "B S Q"]:
        """The predicted quantiles of each number, unsorted."""
        return cast(Transformer, model).output(HEAD, *inputs).unflatten(-1, (-1, len(self.levels)))

    def pinball(
        self, said: Float[Tensor, "B S Q"], right: Float[Tensor, "B S Q"], there: Bool[Tensor, "B S"]
    ) -> Float[Tensor, ""]:
        """The loss, summed over the valid numbers."""
        short, levels = right - said, torch.tensor(self.levels, device=said.device)
        each = 2 * torch.maximum(levels * short, (levels - 1) * short).mean(-1)
        return torch.where(there, each, 0.0).sum()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return {"loss": Loss(self.pinball(self.said(model, batch.inputs), *batch.targets), batch.tokens)}

    def foretold(self, model: nn.Module, samples: Selected) -> tuple[Float[np.ndarray, "N S Q"], float]:
        """Predicted quantiles in the scale of the data, and the mean loss."""
        found: list[np.ndarray] = []
        total, count = 0.0, 0
        for numbers, batch in judged(model, samples):
            said = self.said(model, batch.inputs)
            total, count = total + float(self.pinball(said, *batch.targets)), count + batch.tokens
            examples = cast(Continued, samples.examples)
            found.append(examples.scaled(samples.rows[numbers], said.cpu().double().numpy()))
        return np.concatenate(found), total / count

    def judge(self, model: nn.Module, examples: C, split: str, limit: int | None = None) -> dict[str, Any]:
        """The model's loss, and `forecast_scores` of the final forecasts, of the naive forecast and of other baselines
        on the same numbers.
        """
        samples = examples.of(split).some(limit)
        said, loss = self.foretold(model, samples)
        known = examples.around(samples.rows)
        others = {
            "naive": np.repeat(known.naive[..., None], len(self.levels), -1),
            **examples.baselines(samples.rows),
        }

        def scores(said: np.ndarray) -> dict[str, float]:
            return forecast_scores(said, known.after, known.there, known.scale, self.levels)

        found = scores(examples.final(samples.rows, said))
        for other, quantiles in others.items():
            found |= {f"{name}_{other}": value for name, value in scores(quantiles).items() if name != "coverage"}
        return {"loss": loss, **found, "samples": len(samples)}

    def calibrate(self, model: nn.Module, examples: C, directory: Path) -> list[str]:
        samples = examples.of("validation")
        line = examples.settle(samples.rows, self.foretold(model, samples)[0])
        return [line] if line else []

    def forecasts(self, model: nn.Module, examples: C, rows: np.ndarray) -> Float[np.ndarray, "N S Q"]:
        """The final forecasts of rows."""
        return examples.final(rows, self.foretold(model, Selected(examples, rows))[0])

    def samples(self, model: nn.Module, examples: C, count: int) -> list[dict[str, str]]:
        """Medians and the actual values."""
        rows = examples.spread(count)
        said = self.forecasts(model, examples, rows)[..., len(self.levels) // 2]
        told = [
            [" ".join(f"{x:.4g}" for x in row[:_TOLD]) for row in some] for some in (said, examples.around(rows).after)
        ]
        return [
            {"source": examples.shown(row), "output": one, "reference": other}
            for row, one, other in zip(rows.tolist(), *told)
        ]

    def pictures(self, model: nn.Module, examples: C) -> list[Picture]:
        """The last held-out forecasts of series and the actual values."""
        rows = examples.latest(_DRAWN)
        said, known = self.forecasts(model, examples, rows), examples.around(rows)
        panels = [
            Panel(examples.shown(row), examples.times(row), known.before[n], said[n], known.after[n])
            for n, row in enumerate(rows.tolist())
        ]
        caption = "held-out values (black) and their forecasts (blue) from the last value before them"
        return [Picture("Forecasts", caption, fans(panels), wide=True)] if drawable() else []
