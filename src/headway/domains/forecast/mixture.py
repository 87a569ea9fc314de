"""Mixtures of a network's forecasts with simple ones, weighted by their validation errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from headway.errors import ConfigError

_SHARES = np.linspace(0, 1, 21)
_CLOSE = 1.05  # times the lowest error: shares with at most this error count as equally good
_NETWORK, _WIDTHS = 2.0, 4.0  # independent windows at which the choice counts half
_WIDEST = 5.0


class Forecasts(NamedTuple):
    """Each forecaster's quantiles of the same windows, in the scale of the data."""

    network: Float[np.ndarray, "N S Q"]
    smoothing: Float[np.ndarray, "N S Q"]
    naive: Float[np.ndarray, "N S Q"]


class Observed(NamedTuple):
    """The actual values of windows, which of them are valid, and the scale of their errors."""

    values: Float[np.ndarray, "N S"]
    there: Bool[np.ndarray, "N S"]
    scales: Float[np.ndarray, "N"]

    def error(self, said: Float[np.ndarray, "N S Q"]) -> float:
        """The mean absolute scaled error of the medians."""
        return float((np.abs(self.values - said[..., said.shape[-1] // 2]) / self.scales[:, None])[self.there].mean())


@dataclass(frozen=True)
class ForecastMixture:
    """Quantiles are the means of those of the network, exponential smoothing and the seasonal naive forecast, weighted
    by `shares`; their distances from the median are then multiplied by `widths`, below and above it. `errors` are the
    mean absolute scaled errors of the three on the validation split.
    """

    shares: tuple[float, float, float]
    widths: tuple[float, float]
    errors: tuple[float, float, float]

    def __post_init__(self) -> None:
        shares = all(0 <= share <= 1 for share in self.shares) and abs(sum(self.shares) - 1) < 1e-3
        if not shares or not all(0 < width <= _WIDEST for width in self.widths):
            found = f"invalid shares {self.shares} or widths {self.widths}"
            raise ConfigError(f"the forecast mixture has {found}; restore forecast.json from a copy")

    def mixed(self, said: Forecasts) -> Float[np.ndarray, "N S Q"]:
        found = np.sum([share * each for share, each in zip(self.shares, said) if share], 0)
        middle = said.network.shape[-1] // 2
        sides = np.array([self.widths[0]] * middle + [1.0] + [self.widths[1]] * middle)
        return found[..., middle, None] + sides * (found - found[..., middle, None])

    def __str__(self) -> str:
        errors = [f"{error:.3g}" for error in self.errors]
        shares = [f"{100 * share:.0f} %" for share in self.shares]
        return (
            f"forecasts are {shares[0]} the network, {shares[1]} exponential smoothing and {shares[2]} seasonal naive; "
            f"on the validation split their mean absolute scaled errors are {errors[0]}, {errors[1]} and {errors[2]}"
        )


def choose_mixture(
    simple: tuple[Float[np.ndarray, "M S Q"], Float[np.ndarray, "M S Q"]],
    past: Observed,
    said: Forecasts,
    came: Observed,
) -> ForecastMixture:
    """The mixture for validation windows, by the forecasts `predicted` and the values `actual`. The weights of the
    simple forecasts relative to each other depend on training and validation windows, `simple` (smoothing, naive) and
    `past`: these forecasts have few fitted parameters.

    A share is the mean of all that are about as good as the best. The network's share is lower the fewer windows there
    are. The widths leave a tenth of the values beyond each edge, and approach 1 for few windows.
    """
    naive = _share(*simple, past)
    both = (1 - naive) * said.smoothing + naive * said.naive
    apart = said.network.shape[0] / said.network.shape[1]
    network = _share(both, said.network, came) * apart / (apart + _NETWORK)
    shares = (round(network, 4), round((1 - network) * (1 - naive), 4), round((1 - network) * naive, 4))
    found = ForecastMixture(shares, (1.0, 1.0), (0.0, 0.0, 0.0)).mixed(said)[came.there]
    middle, certain = found[:, found.shape[1] // 2], apart / (apart + _WIDTHS)
    widths = [_width(came.values[came.there], middle, found[:, edge]) ** certain for edge in (0, -1)]
    network, smoothing, naive = map(came.error, said)
    return ForecastMixture(shares, (round(widths[0], 4), round(widths[1], 4)), (network, smoothing, naive))


def _share(one: Float[np.ndarray, "N S Q"], other: Float[np.ndarray, "N S Q"], came: Observed) -> float:
    """The share of `second`."""
    middle = one.shape[-1] // 2
    one, other = (said[..., middle : middle + 1] for said in (one, other))
    errors = np.array([came.error((1 - share) * one + share * other) for share in _SHARES])
    return float(_SHARES[errors <= _CLOSE * errors.min()].mean())


def _width(came: Float[np.ndarray, "N"], middle: Float[np.ndarray, "N"], edge: Float[np.ndarray, "N"]) -> float:
    """The factor on an edge's distance from the median that leaves a tenth of the values beyond it."""
    apart = edge != middle
    beyond = (came - middle)[apart] / (edge - middle)[apart]
    return float(np.clip(np.quantile(beyond, 0.9), 1 / _WIDEST, _WIDEST)) if len(beyond) else 1.0
