"""Exponential smoothing: level, damped trend and season of values or their logarithms, fitted by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_MAX_VALUES = 2048  # last values of a series that select its model
_BATCH_VALUES = 1 << 22  # values per batch of smoothing
_INITIAL_SEASONS, _INITIAL_VALUES = 4, 10  # seasons (or values, without a season) that initialise a series
_MANY_SERIES = 100  # number of series above which fewer models are tried
# Weights of the level; weights of the trend as shares of it; damping; and weights of the season as shares of what the
# level leaves.
_FINE_GRID = (
    (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.999),
    (0.02, 0.1, 0.3),
    (0.9, 0.98, 1.0),
    (0.0, 0.05, 0.2, 0.5, 0.9),
)
_COARSE_GRID = ((0.05, 0.2, 0.6, 0.999), (0.1,), (0.98,), (0.0, 0.2, 0.7))
_TINY = 1e-24  # minimum mean square
_MAX_LOG = 700.0  # maximum logarithm of a forecast


class SmoothingParams(NamedTuple):
    """The smoothing weights of level, trend and season, and the damping of the trend (Hyndman et al. 2008, additive
    errors). A component that is not used starts and stays at 0.
    """

    level: float
    trend: float
    damping: float
    season: float
    has_trend: bool = False
    seasonal: bool = False
    of_logarithms: bool = False


LAST = SmoothingParams(1.0, 0.0, 1.0, 0.0)  # naive
LAST_SEASON = SmoothingParams(0.0, 0.0, 1.0, 1.0, seasonal=True)  # seasonal naive


class InitialStates(NamedTuple):
    """The states before the first value."""

    level: float
    trend: float
    seasons: Float[np.ndarray, "M"]


class SmoothedSeries(NamedTuple):
    """A smoothed series: the states after each value (for the season, preceded by the initial ones). `deviation` is the
    standard deviation of the one-step error.
    """

    params: SmoothingParams
    season: int
    deviation: float
    level: Float[np.ndarray, "N"]
    trend: Float[np.ndarray, "N"]
    seasons: Float[np.ndarray, "K"]

    def quantiles(self, steps: Int[np.ndarray, "B"], horizon: int, levels: Sequence[float]) -> np.ndarray:
        """Quantiles [B, S, Q] of the values from each of `steps` on, given those before it, with normal errors."""
        params, ahead, last_step = self.params, np.arange(1, horizon + 1), steps - 1
        damped = (params.damping**ahead).cumsum()
        median = self.level[last_step][:, None] + self.trend[last_step][:, None] * damped
        median = median + self.seasons[last_step[:, None] + 1 + (ahead - 1) % self.season]
        weights = params.level + params.trend * damped + params.season * (ahead % self.season == 0)
        spread = self.deviation * np.sqrt(1 + np.concatenate([[0.0], (weights[:-1] ** 2).cumsum()]))
        quantiles = median[..., None] + spread[:, None] * np.array([NormalDist().inv_cdf(level) for level in levels])
        return np.exp(quantiles.clip(max=_MAX_LOG)) if params.of_logarithms else quantiles


def select_params(series: Sequence[Float[np.ndarray, "N"]], season: int) -> list[SmoothingParams]:
    """The parameters with the lowest AIC (Akaike 1974) for each series, fitted to its last values."""
    scaled = [values[-_MAX_VALUES:] / (float(np.abs(values[-_MAX_VALUES:]).max()) or 1.0) for values in series]
    candidates: list[tuple[int, SmoothingParams]] = []
    for index in sorted(range(len(scaled)), key=lambda index: -len(scaled[index])):
        for of_logarithms in (False, True)[: 1 + bool(scaled[index].min() > 0)]:
            seasonal = 1 < season < len(scaled[index]) // 2
            candidates += [
                (index, params) for params in _candidates(len(scaled) > _MANY_SERIES, seasonal, of_logarithms)
            ]
    scores: list[dict[SmoothingParams, float]] = [{} for _ in scaled]
    batch_size = max(1, _BATCH_VALUES // (max(map(len, scaled)) + season))
    for start in range(0, len(candidates), batch_size):
        batch = candidates[start : start + batch_size]
        for (index, params), squared_error in zip(batch, _squared_errors(scaled, batch, season).tolist()):
            values = scaled[index]
            weights = 2 + 2 * params.has_trend + (params.damping < 1) + (params.season > 0)
            states = 1 + params.has_trend + season * params.seasonal
            # The AIC for normal errors; for logarithms, corrected to the scale of the values.
            scale = 2 * float(np.log(values).sum()) if params.of_logarithms else 0.0
            likelihood = len(values) * float(np.log(squared_error / len(values) + _TINY)) + scale
            scores[index][params] = likelihood + 2 * (weights + states)
    return [min(candidate_scores, key=lambda params: candidate_scores[params]) for candidate_scores in scores]


def smooth(values: Float[np.ndarray, "N"], fit_end: int, params: SmoothingParams, season: int) -> SmoothedSeries:
    """Smooth a series; the initial states and the `deviation` depend only on values before the step `end`."""
    values = np.log(values) if params.of_logarithms else values
    level, trend, initial_seasons = _initial_states(values[:fit_end], season, params)
    levels, trends, seasons, total = [], [], initial_seasons.tolist(), 0.0
    for step, value in enumerate(values.tolist()):
        damped_trend = params.damping * trend
        error = value - level - damped_trend - seasons[step]
        level, trend = level + damped_trend + params.level * error, damped_trend + params.trend * error
        levels.append(level)
        trends.append(trend)
        seasons.append(seasons[step] + params.season * error)
        total += error * error if step < fit_end else 0.0
    states = (np.array(states) for states in (levels, trends, seasons))
    return SmoothedSeries(params, season, float(np.sqrt(total / fit_end)), *states)


def _candidates(coarse: bool, seasonal: bool, of_logarithms: bool) -> list[SmoothingParams]:
    """All candidates, with and without a season."""
    (levels, trends, dampings, seasons), candidates = _COARSE_GRID if coarse else _FINE_GRID, []
    for level, has_season in product(levels, (False, True)[: 1 + seasonal]):
        for season in [share * (1 - level) for share in seasons] if has_season else [0.0]:
            candidates.append(SmoothingParams(level, 0.0, 1.0, season, False, has_season, of_logarithms))
            candidates += [
                SmoothingParams(level, level * trend, damping, season, True, has_season, of_logarithms)
                for trend, damping in product(trends, dampings)
            ]
    return candidates


def _initial_states(values: Float[np.ndarray, "N"], season: int, params: SmoothingParams) -> InitialStates:
    """Initial states, estimated from the first seasons or the first values."""
    if params == LAST_SEASON:
        return InitialStates(0.0, 0.0, np.resize(values, season))
    steps = season if params.seasonal else 1
    rows = max(1, min(_INITIAL_SEASONS if params.seasonal else _INITIAL_VALUES, len(values) // steps))
    seasons_of_values = np.resize(values, (rows, steps))
    means, center = seasons_of_values.mean(1), (steps - 1) / 2
    times = np.arange(rows) * steps + center
    slope = float(np.polyfit(times, means, 1)[0]) if rows > 1 else 0.0
    seasons = (seasons_of_values - means[:, None]).mean(0) - slope * (np.arange(steps) - center)
    seasons = seasons if params.seasonal else np.zeros(season)
    if not params.has_trend:
        return InitialStates(float(means[0]), 0.0, seasons)
    return InitialStates(float(means.mean() - slope * (times.mean() + 1)), slope, seasons)


def _squared_errors(
    series: Sequence[Float[np.ndarray, "N"]], columns: Sequence[tuple[int, SmoothingParams]], season: int
) -> Float[np.ndarray, "C"]:
    """Sums of squared errors. Each column is a series, by its index, with parameters; the longest series come first."""
    lengths = np.array([len(series[index]) for index, _ in columns])
    values, starts = np.full((int(lengths[0]), len(columns)), np.nan), {}
    for column, (index, params) in enumerate(columns):
        values[: lengths[column], column] = np.log(series[index]) if params.of_logarithms else series[index]
        if (index, params[4:]) not in starts:
            starts[index, params[4:]] = _initial_states(values[: lengths[column], column], season, params)
    initial = [starts[index, params[4:]] for index, params in columns]
    level, trend = (np.array([getattr(start, name) for start in initial]) for name in ("level", "trend"))
    seasons, total = np.stack([start.seasons for start in initial], 1), np.zeros(len(columns))
    by_level, by_trend, damping, by_season = np.array([params[:4] for _, params in columns]).T
    for step, row in enumerate(values):
        num_active, season_states = int((lengths > step).sum()), seasons[step % season]
        carried = damping[:num_active] * trend[:num_active]
        error = row[:num_active] - level[:num_active] - carried - season_states[:num_active]
        level[:num_active] += carried + by_level[:num_active] * error
        trend[:num_active] = carried + by_trend[:num_active] * error
        season_states[:num_active] += by_season[:num_active] * error
        total[:num_active] += error * error
    return total
