"""Forecasting with a trained model: quantiles of the values after series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from headway.domains.forecast.mixture import Forecasts
from headway.domains.forecast.smoothing import best_forms, smoothed
from headway.domains.forecast.task import LEVELS, ForecastConfig, WindowCodec, flat, read_codec
from headway.errors import UserError
from headway.evaluation import listed
from headway.generate.prompts import evaluating
from headway.given import typed
from headway.handle import Handle
from headway.in_memory import Data, kept
from headway.learn.objectives.quantiles import Quantiles


class Forecast(NamedTuple):
    """Forecast of a series: `times` in the format of the data, and `quantiles` by name ("q0.1", ..., "q0.9"; the median
    is "q0.5"), one value per time. `past` is the model's input window, with its times `past_times`.
    """

    series: str
    times: list[str]
    quantiles: dict[str, list[float]]
    past: list[float]
    past_times: list[str]


@typed
def forecast(model: Handle, data: Data | None = None, steps: int | None = None) -> list[Forecast]:
    recipe = model.recipe
    if recipe is None or not isinstance(recipe.task, ForecastConfig):
        raise UserError(f"{model.directory} is not a run of the recipe forecast; choose one of that recipe")
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; use 1 or more")
    with kept(data, "forecast") as paths:
        found, calendar = recipe.task.read([Path(path) for path in (recipe.data if paths is None else listed(paths))])
    codec = read_codec(model.directory, calendar)
    if codec is None:
        raise UserError(f"{model.directory} has no forecast.json; restore it from a copy")
    short = next((one for one in found if len(one.values) < codec.context), None)
    if short is not None:
        held = f"the series {short.name!r} has {len(short.values):,} values"
        raise UserError(f"{held}, but the model needs {codec.context:,}; add earlier values, or leave the series out")
    count = codec.horizon if steps is None else steps
    around = range(-codec.context, count)
    times = [[calendar.text(one.start + (len(one.values) + n) * calendar.step) for n in around] for one in found]
    past = first = np.stack([one.values[-codec.context :] for one in found])
    at = np.array([one.start // codec.step + len(one.values) for one in found])
    least, objective, said = np.array([flat(one.values) for one in found]), Quantiles(LEVELS), []
    simple = _simple(codec, [one.values for one in found], count)
    with evaluating(model.module), torch.no_grad():
        for done in range(0, count, codec.horizon):
            read = codec.read(past, at + done, least)
            quantiles = objective.said(model.module, [read.inputs.to(model.device)])
            own = read.scaled(quantiles.cpu().double().numpy())[:, : count - done]
            others = (each[:, done : done + own.shape[1]] for each in simple)
            said.append(own if codec.mixture is None else codec.mixture.mixed(Forecasts(own, *others)))
            past = np.concatenate([past, said[-1][..., len(LEVELS) // 2]], 1)[:, -codec.context :]
    values = np.moveaxis(np.concatenate(said, 1), -1, 1).tolist()
    named = [dict(zip([f"q{level}" for level in LEVELS], some)) for some in values]
    return [
        Forecast(one.name, when[codec.context :], quantiles, before.tolist(), when[: codec.context])
        for one, when, quantiles, before in zip(found, times, named, first)
    ]


def _simple(codec: WindowCodec, series: Sequence[np.ndarray], count: int) -> Float[np.ndarray, "2 N S Q"]:
    """Quantiles of this many steps after each series, by exponential smoothing and by the seasonal naive forecast."""
    found = np.zeros((2, len(series), count, len(LEVELS)))
    if codec.mixture is not None:
        for number, (values, best) in enumerate(zip(series, best_forms(series, codec.season))):
            for each, form in zip(found, (best, codec.naive)):
                whole = smoothed(values, len(values), form, codec.season)
                each[number] = whole.quantiles(np.array([len(values)]), count, LEVELS)[0]
    return found
