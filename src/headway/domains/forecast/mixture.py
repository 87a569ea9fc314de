"""Forecasts of a network mixed with simple ones, by how good each is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from headway.errors import ConfigError

_SHARES = np.linspace(0, 1, 21)
_CLOSE = 1.05  # times the least error: shares of which it is no more are equally good
_NETWORK, _WIDTHS = 2.0, 4.0  # windows apart from each other, with which the choice counts half
_WIDEST = 5.0


class Forecasts(NamedTuple):
    """What each says of the same windows, in the scale of the data."""

    network: Float[np.ndarray, "N S Q"]
    smoothing: Float[np.ndarray, "N S Q"]
    naive: Float[np.ndarray, "N S Q"]


class Observed(NamedTuple):
    """What came in windows, which of it there is, and what errors are measured in."""

    values: Float[np.ndarray, "N S"]
    there: Bool[np.ndarray, "N S"]
    scales: Float[np.ndarray, "N"]

    def error(self, said: Float[np.ndarray, "N S Q"]) -> float:
        """The mean absolute scaled error of the medians."""
        return float((np.abs(self.values - said[..., said.shape[-1] // 2]) / self.scales[:, None])[self.there].mean())


@dataclass(frozen=True)
class ForecastMixture:
    """Quantiles are means of those of the network, exponential smoothing and the seasonal naive forecast by their
    `shares`; their distances from the median are then multiplied by `widths`, below it and above. `errors` are mean
    absolute scaled errors of the three on the validation part.
    """

    shares: tuple[float, float, float]
    widths: tuple[float, float]
    errors: tuple[float, float, float]

    def __post_init__(self) -> None:
        shares = all(0 <= share <= 1 for share in self.shares) and abs(sum(self.shares) - 1) < 1e-3
        if not shares or not all(0 < width <= _WIDEST for width in self.widths):
            found = f"the shares {self.shares} and the widths {self.widths}"
            raise ConfigError(f"a mixture has {found}; restore forecast.json from a copy")

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
            f"on the validation part their mean absolute scaled errors are {errors[0]}, {errors[1]} and {errors[2]}"
        )


def choose_mixture(
    simple: tuple[Float[np.ndarray, "M S Q"], Float[np.ndarray, "M S Q"]],
    past: Observed,
    said: Forecasts,
    came: Observed,
) -> ForecastMixture:
    """The mixture by windows of the validation part, `said` and `came`. How the simple forecasts are mixed depends on
    those of training and validation, `simple` (smoothing, naive) and `past`: they have few parameters to fit to them.

    A share is the mean of all that are about as good as the best one. That of the network is less the fewer windows
    there are, and with the widths, which go with them to 1, a tenth of the values is beyond either edge.
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
    """That of the other."""
    middle = one.shape[-1] // 2
    one, other = (said[..., middle : middle + 1] for said in (one, other))
    errors = np.array([came.error((1 - share) * one + share * other) for share in _SHARES])
    return float(_SHARES[errors <= _CLOSE * errors.min()].mean())


def _width(came: Float[np.ndarray, "N"], middle: Float[np.ndarray, "N"], edge: Float[np.ndarray, "N"]) -> float:
    """How many times further from the median an edge has to be that a tenth of the values is beyond it."""
    apart = edge != middle
    beyond = (came - middle)[apart] / (edge - middle)[apart]
    return float(np.clip(np.quantile(beyond, 0.9), 1 / _WIDEST, _WIDEST)) if len(beyond) else 1.0
