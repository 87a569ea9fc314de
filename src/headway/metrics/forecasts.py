"""Forecast metrics, and simple baseline forecasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def seasonal_error(values: Float[np.ndarray, "N"], season: int) -> float:
    """The mean absolute error of the seasonal naive forecast within a series, used to scale forecast errors (Hyndman
    and Koehler 2006, equation 3, with the value one season ago instead of one step ago); NaN if it is 0.
    """
    error = float(np.abs(values[season:] - values[:-season]).mean()) if len(values) > season else 0.0
    return error or float("nan")


def forecast_scores(
    quantiles: Float[np.ndarray, "N S Q"],
    actual: Float[np.ndarray, "N S"],
    valid: Bool[np.ndarray, "N S"],
    scales: Float[np.ndarray, "N"],
    levels: Sequence[float],
) -> dict[str, float]:
    """Forecast scores. `mase` is the mean absolute error of the medians divided by `scales` (`seasonal_error`), and is
    omitted if no series has a scale. `weighted_quantile_loss` is twice the sum of pinball losses divided by the sum of
    absolute values (Salinas et al. 2020, section 4.2, averaged over levels). `coverage` is the share of values between
    the outermost quantiles.
    """
    level_values, scores = np.asarray(levels), {}
    median = quantiles[..., int(np.abs(level_values - 0.5).argmin())]
    scaled = np.where(valid, np.abs(actual - median), np.nan) / scales[:, None]
    if np.isfinite(scaled).any():
        scores["mase"] = float(np.nanmean(scaled))
    difference = actual[..., None] - quantiles
    losses = 2 * np.maximum(level_values * difference, (level_values - 1) * difference).mean(-1)
    total = float(np.abs(actual[valid]).sum())
    if total:
        scores["weighted_quantile_loss"] = float(losses[valid].sum() / total)
    covered = (quantiles[..., 0] <= actual) & (actual <= quantiles[..., -1])
    return {**scores, "coverage": float(covered[valid].mean())}


def simple_forecasts(past: Float[np.ndarray, "B C"], horizon: int, season: int) -> dict[str, Float[np.ndarray, "B S"]]:
    """Baselines: the last value, the mean, and the line through the first and last value (drift). With at least one
    season of history, also the last season (seasonal naive); with two, also the last season plus the difference between
    their means.
    """
    steps_ahead, last = np.arange(1, horizon + 1), past[:, -1:]
    slope = (last - past[:, :1]) / max(1, past.shape[1] - 1)
    forecasts = {
        "last": last + 0 * steps_ahead,
        "mean": past.mean(1, keepdims=True) + 0 * steps_ahead,
        "drift": last + slope * steps_ahead,
    }
    if 1 < season <= past.shape[1]:
        forecasts["season"] = past[:, -season + (steps_ahead - 1) % season]
    if 1 < season <= past.shape[1] // 2:
        drift = past[:, -season:].mean(1) - past[:, -2 * season : -season].mean(1)
        forecasts["season and drift"] = forecasts["season"] + drift[:, None] * ((steps_ahead - 1) // season + 1)
    return forecasts
