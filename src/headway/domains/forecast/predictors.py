"""Forecasting with a trained model: quantiles of the values that follow series."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from headway.data.series import Calendar, Series
from headway.domains.forecast.exponential_smoothing import select_params, smooth
from headway.domains.forecast.task import LEVELS, ForecastConfig, Forecasts, WindowCodec, flat_scale, read_codec
from headway.errors import UserError
from headway.io.arguments import check_types
from headway.learn.objectives.quantiles import Quantiles
from headway.nn.models import evaluation_mode
from headway.predict.in_memory_data import Data, data_paths
from headway.predict.model_evaluation import path_list
from headway.predict.model_handle import ModelHandle


class Forecast(NamedTuple):
    """The forecast for a series: `times` in the data's format, and `quantiles` by name ("q0.1", ..., "q0.9"; the median
    is "q0.5"), one value per time. `past` is the model's input window, and `past_times` are its times.
    """

    series: str
    times: list[str]
    quantiles: dict[str, list[float]]
    past: list[float]
    past_times: list[str]


class History(NamedTuple):
    """Series to continue, the calendar of their times, and the windows that the model takes of them."""

    series: list[Series]
    calendar: Calendar
    codec: WindowCodec


@check_types
def forecast(model: ModelHandle, data: Data | None = None, steps: int | None = None) -> list[Forecast]:
    """Quantiles of the next `steps` (None: the run's horizon) after each series of `data` (whatever `train` takes;
    None: the run's own).

    Beyond the horizon the model continues from its own medians, so its intervals are too narrow. Missing values
    raise an error or are filled, as in the run (`task.fill`). Raises UserError for a model that does not forecast,
    and for series that are too short or have a different time step.

    steps: steps to forecast (default: the run's horizon).
    """
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; use 1 or more")
    return continue_history(model, read_history(model, data), steps)


def read_history(model: ModelHandle, data: Data | None) -> History:
    """The series of `data`, which a model can continue. Raises the same errors as `forecast`."""
    recipe = model.recipe
    if recipe is None or not isinstance(recipe.task, ForecastConfig):
        raise UserError(f"{model.directory} is not a run of the forecast recipe; choose one that is")
    with data_paths(data, "forecast") as paths:
        series_list, calendar = recipe.task.read_data(
            [Path(path) for path in (recipe.data if paths is None else path_list(paths))]
        )
    codec = read_codec(model.directory, calendar)
    if codec is None:
        raise UserError(f"{model.directory} has no forecast.json; restore it from a copy")
    short_series = next((series for series in series_list if len(series.values) < codec.context), None)
    if short_series is not None:
        length = f"the series {short_series.name!r} has {len(short_series.values):,} values"
        raise UserError(f"{length}, but the model needs {codec.context:,}; add earlier values, or remove the series")
    return History(series_list, calendar, codec)


def continue_history(model: ModelHandle, history: History, steps: int | None) -> list[Forecast]:
    """The forecast for each series."""
    series_list, calendar, codec = history
    count = codec.horizon if steps is None else steps
    around = range(-codec.context, count)
    times = [
        [calendar.format(series.start + (len(series.values) + n) * calendar.step) for n in around]
        for series in series_list
    ]
    past = first_past = np.stack([series.values[-codec.context :] for series in series_list])
    next_step = np.array([series.start // codec.step + len(series.values) for series in series_list])
    min_scales = np.array([flat_scale(series.values) for series in series_list])
    objective, forecasts = Quantiles(LEVELS), []
    # Quantiles from exponential smoothing and from the seasonal naive forecast.
    simple = np.zeros((2, len(series_list), count, len(LEVELS)))
    if codec.mixture is not None:
        all_values = [series.values for series in series_list]
        for index, (values, best_params) in enumerate(zip(all_values, select_params(all_values, codec.season))):
            for output, params in zip(simple, (best_params, codec.naive)):
                smoothed_series = smooth(values, len(values), params, codec.season)
                output[index] = smoothed_series.quantiles(np.array([len(values)]), count, LEVELS)[0]
    with evaluation_mode(model.module), torch.no_grad():
        for offset in range(0, count, codec.horizon):
            window = codec.encode(past, next_step + offset, min_scales)
            quantiles = objective.quantiles(model.module, [window.inputs.to(model.device)])
            network = window.unscale(quantiles.cpu().double().numpy())[:, : count - offset]
            simple_parts = (simple_part[:, offset : offset + network.shape[1]] for simple_part in simple)
            forecasts.append(network if codec.mixture is None else codec.mixture.mix(Forecasts(network, *simple_parts)))
            past = np.concatenate([past, forecasts[-1][..., len(LEVELS) // 2]], 1)[:, -codec.context :]
    predicted = np.moveaxis(np.concatenate(forecasts, 1), -1, 1).tolist()
    named_quantiles = [dict(zip([f"q{level}" for level in LEVELS], levels_of_series)) for levels_of_series in predicted]
    return [
        Forecast(
            series.name, series_times[codec.context :], quantiles, series_past.tolist(), series_times[: codec.context]
        )
        for series, series_times, quantiles, series_past in zip(series_list, times, named_quantiles, first_past)
    ]
