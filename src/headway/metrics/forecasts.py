"""How good forecasts are beside what came, and the simple ones that others are to be better than."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def seasonal_error(values: Float[np.ndarray, "N"], season: int) -> float:
    """The mean absolute error of the seasonal naive forecast within a series, by which errors beyond it are scaled
    (Hyndman and Koehler 2006, equation 3, with the value of a season ago for that of a step ago); NaN where it is 0.
    """
    error = float(np.abs(values[season:] - values[:-season]).mean()) if len(values) > season else 0.0
    return error or float("nan")


def forecast_scores(
    said: Float[np.ndarray, "N S Q"],
    came: Float[np.ndarray, "N S"],
    there: Bool[np.ndarray, "N S"],
    scales: Float[np.ndarray, "N"],
    levels: Sequence[float],
) -> dict[str, float]:
    """`mase`, the mean absolute error of the medians in `scales` (`seasonal_error`), left out where no series has one;
    `weighted_quantile_loss`, the sum of all pinball losses, twice, in that of absolute values (Salinas et al. 2020,
    section 4.2, in the mean over the levels); and `coverage`, the share that lies between the outermost quantiles.
    """
    places, found = np.asarray(levels), {}
    middle = said[..., int(np.abs(places - 0.5).argmin())]
    scaled = np.where(there, np.abs(came - middle), np.nan) / scales[:, None]
    if np.isfinite(scaled).any():
        found["mase"] = float(np.nanmean(scaled))
    short = came[..., None] - said
    losses = 2 * np.maximum(places * short, (places - 1) * short).mean(-1)
    size = float(np.abs(came[there]).sum())
    if size:
        found["weighted_quantile_loss"] = float(losses[there].sum() / size)
    inside = (said[..., 0] <= came) & (came <= said[..., -1])
    return {**found, "coverage": float(inside[there].mean())}


def simple_forecasts(past: Float[np.ndarray, "B C"], horizon: int, season: int) -> dict[str, Float[np.ndarray, "B S"]]:
    """Simple forecasts: the last value, the mean, the straight line through the ends; where there are seasons, the last
    one (seasonal naive), with two of them also with the difference of their means.
    """
    ahead, last = np.arange(1, horizon + 1), past[:, -1:]
    slope = (last - past[:, :1]) / max(1, past.shape[1] - 1)
    found = {"last": last + 0 * ahead, "mean": past.mean(1, keepdims=True) + 0 * ahead, "drift": last + slope * ahead}
    if 1 < season <= past.shape[1]:
        found["season"] = past[:, -season + (ahead - 1) % season]
    if 1 < season <= past.shape[1] // 2:
        more = past[:, -season:].mean(1) - past[:, -2 * season : -season].mean(1)
        found["season and drift"] = found["season"] + more[:, None] * ((ahead - 1) // season + 1)
    return found
