"""Mixtures of network forecasts with simple ones, weighted by their validation errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from headway.errors import ConfigError

_SHARES = np.linspace(0, 1, 21)
_ERROR_TOLERANCE = 1.05  # shares with at most this multiple of the lowest error count as equally good
_NETWORK_WINDOWS, _WIDTH_WINDOWS = 2.0, 4.0  # number of independent windows at which the choice has half its weight
_MAX_WIDTH = 5.0


class Forecasts(NamedTuple):
    """Each forecaster's quantiles for the same windows, in the scale of the data."""

    network: Float[np.ndarray, "N S Q"]
    smoothing: Float[np.ndarray, "N S Q"]
    naive: Float[np.ndarray, "N S Q"]


class Observed(NamedTuple):
    """The actual values in windows, which of them are valid, and the scale of their errors."""

    values: Float[np.ndarray, "N S"]
    valid: Bool[np.ndarray, "N S"]
    scales: Float[np.ndarray, "N"]

    def error(self, quantiles: Float[np.ndarray, "N S Q"]) -> float:
        """The mean absolute scaled error of the medians."""
        return float(
            (np.abs(self.values - quantiles[..., quantiles.shape[-1] // 2]) / self.scales[:, None])[self.valid].mean()
        )


@dataclass(frozen=True)
class ForecastMixture:
    """Averages the quantiles from the network, exponential smoothing and the seasonal naive forecast, weighted by
    `shares`, and then multiplies their distances from the median by `widths`, below and above it. `errors` are the mean
    absolute scaled errors of the three on the validation split.
    """

    shares: tuple[float, float, float]
    widths: tuple[float, float]
    errors: tuple[float, float, float]

    def __post_init__(self) -> None:
        are_shares = all(0 <= share <= 1 for share in self.shares) and abs(sum(self.shares) - 1) < 1e-3
        if not are_shares or not all(0 < width <= _MAX_WIDTH for width in self.widths):
            problem = f"invalid shares {self.shares} or widths {self.widths}"
            raise ConfigError(f"the forecast mixture has {problem}; restore forecast.json from a copy")

    def mix(self, forecasts: Forecasts) -> Float[np.ndarray, "N S Q"]:
        quantiles = np.sum([share * forecast for share, forecast in zip(self.shares, forecasts) if share], 0)
        median_index = forecasts.network.shape[-1] // 2
        factors = np.array([self.widths[0]] * median_index + [1.0] + [self.widths[1]] * median_index)
        return quantiles[..., median_index, None] + factors * (quantiles - quantiles[..., median_index, None])

    def __str__(self) -> str:
        errors = [f"{error:.3g}" for error in self.errors]
        shares = [f"{100 * share:.0f} %" for share in self.shares]
        return (
            f"forecasts mix {shares[0]} network, {shares[1]} exponential smoothing and {shares[2]} seasonal naive; on "
            f"the validation split their mean absolute scaled errors are {errors[0]}, {errors[1]} and {errors[2]}"
        )


def choose_mixture(
    simple: tuple[Float[np.ndarray, "M S Q"], Float[np.ndarray, "M S Q"]],
    past: Observed,
    predicted: Forecasts,
    actual: Observed,
) -> ForecastMixture:
    """Choose the mixture for validation windows from the forecasts `predicted` and the values `actual`. The relative
    weights of the simple forecasts also use training windows, `simple` (smoothing, naive) and `past`, because these
    forecasts have few fitted parameters.

    A share is the mean of all shares that are about as good as the best. The fewer windows there are, the lower the
    network's share and the closer the widths are to 1. The widths leave a tenth of the values beyond each edge.
    """
    naive = _best_share(*simple, past)
    simple_mix = (1 - naive) * predicted.smoothing + naive * predicted.naive
    num_windows = predicted.network.shape[0] / predicted.network.shape[1]
    network = _best_share(simple_mix, predicted.network, actual) * num_windows / (num_windows + _NETWORK_WINDOWS)
    shares = (round(network, 4), round((1 - network) * (1 - naive), 4), round((1 - network) * naive, 4))
    quantiles = ForecastMixture(shares, (1.0, 1.0), (0.0, 0.0, 0.0)).mix(predicted)[actual.valid]
    median, confidence = quantiles[:, quantiles.shape[1] // 2], num_windows / (num_windows + _WIDTH_WINDOWS)
    widths = [_edge_factor(actual.values[actual.valid], median, quantiles[:, edge]) ** confidence for edge in (0, -1)]
    network, smoothing, naive = map(actual.error, predicted)
    return ForecastMixture(shares, (round(widths[0], 4), round(widths[1], 4)), (network, smoothing, naive))


def _best_share(first: Float[np.ndarray, "N S Q"], second: Float[np.ndarray, "N S Q"], actual: Observed) -> float:
    """The share of `second`."""
    median_index = first.shape[-1] // 2
    first, second = (forecast[..., median_index : median_index + 1] for forecast in (first, second))
    errors = np.array([actual.error((1 - share) * first + share * second) for share in _SHARES])
    return float(_SHARES[errors <= _ERROR_TOLERANCE * errors.min()].mean())


def _edge_factor(actual: Float[np.ndarray, "N"], median: Float[np.ndarray, "N"], edge: Float[np.ndarray, "N"]) -> float:
    """The factor for an edge's distance from the median that leaves a tenth of the values beyond it."""
    nonzero = edge != median
    ratios = (actual - median)[nonzero] / (edge - median)[nonzero]
    return float(np.clip(np.quantile(ratios, 0.9), 1 / _MAX_WIDTH, _MAX_WIDTH)) if len(ratios) else 1.0
