"""Exponential smoothing: level, damped trend and season, of values or their logarithms, fitted by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_VALUES = 2048  # of a series, its last ones, for selecting its model
_CELLS = 1 << 22  # values per batch of smoothing
_SEASONS, _FIRST = 4, 10  # seasons, or values without seasons, from which a series is initialised
_MANY = 100  # series, above which fewer models are tried
# Weights of the level; weights of the trend as shares of it; damping; and weights of the season as shares of what the
# level leaves.
_FINE = (
    (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.999),
    (0.02, 0.1, 0.3),
    (0.9, 0.98, 1.0),
    (0.0, 0.05, 0.2, 0.5, 0.9),
)
_COARSE = ((0.05, 0.2, 0.6, 0.999), (0.1,), (0.98,), (0.0, 0.2, 0.7))
_TINY = 1e-24  # of a mean square
_MOST = 700.0  # maximum logarithm of a forecast


class SmoothingForm(NamedTuple):
    """The smoothing weights of level, trend and season, and the damping of the trend (Hyndman et al. 2008, additive
    errors). A missing component starts at 0 and stays there.
    """

    level: float
    trend: float
    damping: float
    season: float
    has_trend: bool = False
    seasonal: bool = False
    of_logarithms: bool = False


LAST, LAST_SEASON = (
    SmoothingForm(1.0, 0.0, 1.0, 0.0),
    SmoothingForm(0.0, 0.0, 1.0, 1.0, seasonal=True),
)  # naive and seasonal naive


class Start(NamedTuple):
    """The states before the first value."""

    level: float
    trend: float
    seasons: Float[np.ndarray, "M"]


class Smoothed(NamedTuple):
    """A smoothed series: the states after each of its values, preceded for the season by the initial ones; `deviation`
    is the standard deviation of the one-step error.
    """

    form: SmoothingForm
    season: int
    deviation: float
    level: Float[np.ndarray, "N"]
    trend: Float[np.ndarray, "N"]
    seasons: Float[np.ndarray, "K"]

    def quantiles(self, steps: Int[np.ndarray, "B"], horizon: int, levels: Sequence[float]) -> np.ndarray:
        """Quantiles of the values from each of `steps` on, given those before it, with normal errors: [B, S, Q]."""
        form, ahead, last = self.form, np.arange(1, horizon + 1), steps - 1
        damped = (form.damping**ahead).cumsum()
        middle = self.level[last][:, None] + self.trend[last][:, None] * damped
        middle = middle + self.seasons[last[:, None] + 1 + (ahead - 1) % self.season]
        again = form.level + form.trend * damped + form.season * (ahead % self.season == 0)
        spread = self.deviation * np.sqrt(1 + np.concatenate([[0.0], (again[:-1] ** 2).cumsum()]))
        found = middle[..., None] + spread[:, None] * np.array([NormalDist().inv_cdf(level) for level in levels])
        return np.exp(found.clip(max=_MOST)) if form.of_logarithms else found


def best_forms(series: Sequence[Float[np.ndarray, "N"]], season: int) -> list[SmoothingForm]:
    """The parameters with the lowest AIC (Akaike 1974) for each series, on its last values."""
    some = [values[-_VALUES:] / (float(np.abs(values[-_VALUES:]).max()) or 1.0) for values in series]
    columns: list[tuple[int, SmoothingForm]] = []
    for number in sorted(range(len(some)), key=lambda number: -len(some[number])):
        for of_logarithms in (False, True)[: 1 + bool(some[number].min() > 0)]:
            seasonal = 1 < season < len(some[number]) // 2
            columns += [(number, form) for form in _forms(len(some) > _MANY, seasonal, of_logarithms)]
    scores: list[dict[SmoothingForm, float]] = [{} for _ in some]
    at_once = max(1, _CELLS // (max(map(len, some)) + season))
    for begin in range(0, len(columns), at_once):
        part = columns[begin : begin + at_once]
        for (number, form), square in zip(part, _errors(some, part, season).tolist()):
            scores[number][form] = _aic(form, some[number], season, square)
    return [min(each, key=lambda form: each[form]) for each in scores]


def smoothed(values: Float[np.ndarray, "N"], end: int, form: SmoothingForm, season: int) -> Smoothed:
    """Smooth a series; the initial states and the `deviation` depend only on values before the step `end`."""
    values = np.log(values) if form.of_logarithms else values
    level, trend, start = _start(values[:end], season, form)
    levels, trends, seasons, total = [], [], start.tolist(), 0.0
    for step, value in enumerate(values.tolist()):
        carried = form.damping * trend
        error = value - level - carried - seasons[step]
        level, trend = level + carried + form.level * error, carried + form.trend * error
        levels.append(level)
        trends.append(trend)
        seasons.append(seasons[step] + form.season * error)
        total += error * error if step < end else 0.0
    states = (np.array(each) for each in (levels, trends, seasons))
    return Smoothed(form, season, float(np.sqrt(total / end)), *states)


def _forms(coarse: bool, seasonal: bool, of_logarithms: bool) -> list[SmoothingForm]:
    """All candidates, with and without a season."""
    (levels, trends, dampings, seasons), found = _COARSE if coarse else _FINE, []
    for level, has_season in product(levels, (False, True)[: 1 + seasonal]):
        for season in [share * (1 - level) for share in seasons] if has_season else [0.0]:
            found.append(SmoothingForm(level, 0.0, 1.0, season, False, has_season, of_logarithms))
            found += [
                SmoothingForm(level, level * trend, damping, season, True, has_season, of_logarithms)
                for trend, damping in product(trends, dampings)
            ]
    return found


def _start(values: Float[np.ndarray, "N"], season: int, form: SmoothingForm) -> Start:
    """Estimated from the first seasons, or the first values."""
    if form == LAST_SEASON:
        return Start(0.0, 0.0, np.resize(values, season))
    steps = season if form.seasonal else 1
    rows = max(1, min(_SEASONS if form.seasonal else _FIRST, len(values) // steps))
    parts = np.resize(values, (rows, steps))
    means, middle = parts.mean(1), (steps - 1) / 2
    times = np.arange(rows) * steps + middle
    slope = float(np.polyfit(times, means, 1)[0]) if rows > 1 else 0.0
    seasons = (parts - means[:, None]).mean(0) - slope * (np.arange(steps) - middle)
    seasons = seasons if form.seasonal else np.zeros(season)
    if not form.has_trend:
        return Start(float(means[0]), 0.0, seasons)
    return Start(float(means.mean() - slope * (times.mean() + 1)), slope, seasons)


def _errors(
    series: Sequence[Float[np.ndarray, "N"]], columns: Sequence[tuple[int, SmoothingForm]], season: int
) -> Float[np.ndarray, "C"]:
    """Sums of squared errors: each column is a series, by its index, with parameters. The longest series come first."""
    lengths = np.array([len(series[number]) for number, _ in columns])
    values, starts = np.full((int(lengths[0]), len(columns)), np.nan), {}
    for place, (number, form) in enumerate(columns):
        values[: lengths[place], place] = np.log(series[number]) if form.of_logarithms else series[number]
        if (number, form[4:]) not in starts:
            starts[number, form[4:]] = _start(values[: lengths[place], place], season, form)
    begun = [starts[number, form[4:]] for number, form in columns]
    level, trend = (np.array([getattr(start, name) for start in begun]) for name in ("level", "trend"))
    seasons, total = np.stack([start.seasons for start in begun], 1), np.zeros(len(columns))
    by_level, by_trend, damping, by_season = np.array([form[:4] for _, form in columns]).T
    for step, row in enumerate(values):
        n, now = int((lengths > step).sum()), seasons[step % season]
        carried = damping[:n] * trend[:n]
        error = row[:n] - level[:n] - carried - now[:n]
        level[:n] += carried + by_level[:n] * error
        trend[:n] = carried + by_trend[:n] * error
        now[:n] += by_season[:n] * error
        total[:n] += error * error
    return total


def _aic(form: SmoothingForm, values: Float[np.ndarray, "N"], season: int, square: float) -> float:
    """For normal errors; for logarithms, corrected to the scale of the values."""
    weights = 2 + 2 * form.has_trend + (form.damping < 1) + (form.season > 0)
    states = 1 + form.has_trend + season * form.seasonal
    scale = 2 * float(np.log(values).sum()) if form.of_logarithms else 0.0
    return len(values) * float(np.log(square / len(values) + _TINY)) + scale + 2 * (weights + states)
