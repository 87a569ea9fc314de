"""Forecasts of a network mixed with simple ones, by how good each is on the validation part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from headway.errors import ConfigError

Baseline = Literal["smoothing", "naive"]
_NAMES: Mapping[Baseline, str] = {"smoothing": "exponential smoothing", "naive": "the seasonal naive forecast"}
_SHARES = np.linspace(0, 1, 21)
_CLOSE = 1.05  # times the least error: shares of which it is no more are equally good
_WINDOWS = 4.0  # windows apart from each other, with which widths go half the way
_WIDEST = 5.0


@dataclass(frozen=True)
class Mixture:
    """Quantiles are means of the network's and those of a `baseline`, which has this `share`; their distances from the
    median are then multiplied by `widths`, below it and above. `errors` are mean absolute scaled errors on the
    validation part: of the network, exponential smoothing and the seasonal naive forecast.
    """

    share: float
    baseline: Baseline
    widths: tuple[float, float]
    errors: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or min(self.widths) <= 0:
            found = f"the share {self.share:g} and the widths {self.widths}"
            raise ConfigError(f"a mixture has {found}; restore forecast.json from a copy")

    def mixed(self, own: Float[np.ndarray, "N S Q"], other: Float[np.ndarray, "N S Q"]) -> Float[np.ndarray, "N S Q"]:
        """The network's quantiles with those of the baseline."""
        found = (1 - self.share) * own + self.share * other
        middle = found.shape[-1] // 2
        sides = np.array([self.widths[0]] * middle + [1.0] + [self.widths[1]] * middle)
        return found[..., middle, None] + sides * (found - found[..., middle, None])

    def __str__(self) -> str:
        network, smoothing, naive = (f"{error:.3g}" for error in self.errors)
        part = "the network alone"
        if self.share:
            part = f"{100 * self.share:.0f} % {_NAMES[self.baseline]}"
        return (
            f"mean absolute scaled error on the validation part: the network {network}, exponential smoothing "
            f"{smoothing}, the seasonal naive forecast {naive}; forecasts are {part}"
        )


def choose_mixture(
    own: Float[np.ndarray, "N S Q"],
    others: Mapping[Baseline, Float[np.ndarray, "N S Q"]],
    baseline: Baseline,
    came: Float[np.ndarray, "N S"],
    there: Bool[np.ndarray, "N S"],
    scales: Float[np.ndarray, "N"],
) -> Mixture:
    """The mixture with a baseline by windows of the validation part. Its share is the mean of all shares that are about
    as good as the best one. With its widths a tenth of the values is beyond either edge; they are nearer to 1 where
    there are few windows.
    """
    middle = own.shape[-1] // 2

    def error(said: Float[np.ndarray, "N S Q"]) -> float:
        return float(np.mean((np.abs(came - said[..., middle]) / scales[:, None])[there]))

    errors = (error(own), error(others["smoothing"]), error(others["naive"]))
    tried = np.array([error((1 - share) * own + share * others[baseline]) for share in _SHARES])
    share = round(float(_SHARES[tried <= _CLOSE * tried.min()].mean()), 4)
    found = Mixture(share, baseline, (1.0, 1.0), errors).mixed(own, others[baseline])
    apart = own.shape[0] / own.shape[1]
    certain = apart / (apart + _WINDOWS)
    widths = [_width(came[there], found[there][:, middle], found[there][:, edge]) ** certain for edge in (0, -1)]
    return Mixture(share, baseline, (round(widths[0], 4), round(widths[1], 4)), errors)


def _width(came: Float[np.ndarray, "N"], middle: Float[np.ndarray, "N"], edge: Float[np.ndarray, "N"]) -> float:
    """How many times further from the median an edge has to be that a tenth of the values is beyond it."""
    apart = edge != middle
    beyond = (came - middle)[apart] / (edge - middle)[apart]
    return float(np.clip(np.quantile(beyond, 0.9), 1 / _WIDEST, _WIDEST)) if len(beyond) else 1.0
