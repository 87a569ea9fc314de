"""Quantile forecasts for the next numbers in a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from headway.layout import to_device
from headway.learn.examples import Batch, IndexedExamples, RowSubset
from headway.learn.objective import Baseline, Objective, evaluate_batches
from headway.learn.report import Picture
from headway.learn.report.charts import Panel, drawable, forecast_figure
from headway.metrics.forecasts import forecast_scores
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig

HEAD = "quantiles"
_MAX_FORECASTS, _MAX_VALUES = 6, 8  # maximum forecasts in a report, and maximum values in a line of text


class ForecastWindow(NamedTuple):
    """Samples in the data's scale: the numbers `before` and `after`, which of the latter are `valid`, the `naive`
    forecast, and the `scale` for errors, NaN if undefined.
    """

    before: Float[np.ndarray, "B C"]
    after: Float[np.ndarray, "B S"]
    valid: Bool[np.ndarray, "B S"]
    naive: Float[np.ndarray, "B S"]
    scale: Float[np.ndarray, "B"]


class ForecastSamples(IndexedExamples):
    """Samples whose next `horizon` numbers are to be predicted. A domain defines the inputs for samples and the scale
    for predictions (`take`).
    """

    horizon: int

    def forecast_window(self, rows: np.ndarray) -> ForecastWindow:
        raise NotImplementedError

    def scaled(self, rows: np.ndarray, quantiles: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """Predicted quantiles for rows, in the data's scale."""
        raise NotImplementedError

    def latest_rows(self, count: int) -> np.ndarray:
        """The last rows in the final split, one for each of `count` series; several non-overlapping rows if there is
        only one series.
        """
        raise NotImplementedError

    def times(self, row: int) -> Shaped[np.ndarray, "C+S"]:
        """The times of the numbers before and after, for the axis in a picture."""
        raise NotImplementedError

    def final_forecast(self, rows: np.ndarray, quantiles: Float[np.ndarray, "B S Q"]) -> Float[np.ndarray, "B S Q"]:
        """The final forecast for rows, from the model's quantiles in the data's scale."""
        return quantiles

    def classical_forecast(self, rows: np.ndarray) -> Float[np.ndarray, "B S Q"]:
        """The forecast for rows by the best method without a network."""
        raise NotImplementedError

    def baselines(self, rows: np.ndarray) -> dict[str, Float[np.ndarray, "B S Q"]]:
        """Forecasts for rows by simple methods other than the naive one, by name."""
        return {}

    def choose_combination(self, rows: np.ndarray, quantiles: Float[np.ndarray, "B S Q"]) -> str:
        """Choose on the validation rows how `final_forecast` uses the model's quantiles; return a line for people."""
        return ""


C = TypeVar("C", bound=ForecastSamples)


class Quantiles(Objective[C], Generic[C]):
    """Twice the pinball loss (Koenker and Bassett 1978) on the head "quantiles", averaged over the levels; for the
    median it equals the absolute error. Targets are the numbers for each quantile, Float[B, S, Q], and which of them
    are valid, Bool[B, S].
    """

    shares_evaluation = True

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

    def quantiles(self, model: nn.Module, inputs: Sequence[Any]) -> Float[Tensor, "B S Q"]:
        """The predicted quantiles for each number, unsorted."""
        return cast(Transformer, model).output(HEAD, *inputs).unflatten(-1, (-1, len(self.levels)))

    def pinball(
        self, quantiles: Float[Tensor, "B S Q"], targets: Float[Tensor, "B S Q"], valid: Bool[Tensor, "B S"]
    ) -> Float[Tensor, ""]:
        """The loss, summed over the valid numbers."""
        errors, levels = targets - quantiles, to_device(torch.tensor(self.levels), quantiles.device)
        losses = 2 * torch.maximum(levels * errors, (levels - 1) * errors).mean(-1)
        return torch.where(valid, losses, 0.0).sum()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return {"loss": Loss(self.pinball(self.quantiles(model, batch.inputs), *batch.targets), batch.tokens)}

    def predict_quantiles(self, model: nn.Module, samples: RowSubset) -> tuple[Float[np.ndarray, "N S Q"], float]:
        """Predicted quantiles in the data's scale, and the mean loss."""
        chunks: list[np.ndarray] = []
        total, count = 0.0, 0

        def compute(indices: np.ndarray, batch: Batch) -> tuple[Tensor, Tensor, float, int]:
            quantiles = self.quantiles(model, batch.inputs)
            pinball = float(self.pinball(quantiles, *batch.targets))
            return torch.from_numpy(indices), quantiles.cpu(), pinball, batch.tokens

        for indices, quantiles, pinball, tokens in evaluate_batches(model, samples, compute):
            total, count = total + pinball, count + tokens
            examples = cast(ForecastSamples, samples.examples)
            chunks.append(examples.scaled(samples.rows[indices.numpy()], quantiles.double().numpy()))
        return np.concatenate(chunks), total / count

    def baseline(self, examples: C, limit: int) -> Baseline | None:
        """The classical forecast, which is fitted to all values before the validation split; None if its errors have no
        scale.
        """
        rows = examples.of("validation").limited_to(limit).rows
        window = examples.forecast_window(rows)
        forecast = examples.classical_forecast(rows)
        scores = forecast_scores(forecast, window.after, window.valid, window.scale, self.levels)
        return Baseline("exponential smoothing", "mase", scores["mase"]) if "mase" in scores else None

    def evaluate(self, model: nn.Module, examples: C, split: str, limit: int | None = None) -> dict[str, Any]:
        """The model's loss, and `forecast_scores` for the final forecasts, the naive forecast and other baselines on
        the same numbers.
        """
        samples = examples.of(split).limited_to(limit)
        predicted, loss = self.predict_quantiles(model, samples)
        window = examples.forecast_window(samples.rows)
        baselines = {
            "naive": np.repeat(window.naive[..., None], len(self.levels), -1),
            **examples.baselines(samples.rows),
        }

        def scores(forecast: np.ndarray) -> dict[str, float]:
            return forecast_scores(forecast, window.after, window.valid, window.scale, self.levels)

        scores_by_name = scores(examples.final_forecast(samples.rows, predicted))
        for baseline, quantiles in baselines.items():
            scores_by_name |= {
                f"{name}_{baseline}": value for name, value in scores(quantiles).items() if name != "coverage"
            }
        return {"loss": loss, **scores_by_name, "samples": len(samples)}

    def calibrate(self, model: nn.Module, examples: C, directory: Path) -> list[str]:
        samples = examples.of("validation")
        line = examples.choose_combination(samples.rows, self.predict_quantiles(model, samples)[0])
        return [line] if line else []

    def final_forecasts(self, model: nn.Module, examples: C, rows: np.ndarray) -> Float[np.ndarray, "N S Q"]:
        """The final forecasts for rows."""
        return examples.final_forecast(rows, self.predict_quantiles(model, RowSubset(examples, rows))[0])

    def samples(self, model: nn.Module, examples: C, count: int) -> list[dict[str, str]]:
        """Predicted medians and actual values."""
        rows = examples.spread_rows(count)
        medians = self.final_forecasts(model, examples, rows)[..., len(self.levels) // 2]
        texts = [
            [" ".join(f"{x:.4g}" for x in row[:_MAX_VALUES]) for row in numbers]
            for numbers in (medians, examples.forecast_window(rows).after)
        ]
        return [
            {"source": examples.describe_row(row), "output": predicted, "reference": actual}
            for row, predicted, actual in zip(rows.tolist(), *texts)
        ]

    def pictures(self, model: nn.Module, examples: C) -> list[Picture]:
        """The last held-out forecasts for some series, and the actual values."""
        rows = examples.latest_rows(_MAX_FORECASTS)
        forecasts, window = self.final_forecasts(model, examples, rows), examples.forecast_window(rows)
        panels = [
            Panel(examples.describe_row(row), examples.times(row), window.before[n], forecasts[n], window.after[n])
            for n, row in enumerate(rows.tolist())
        ]
        caption = "held-out values (black) and forecasts (blue) made from the last value before them"
        return [Picture("Forecasts", caption, forecast_figure(panels), wide=True)] if drawable() else []
