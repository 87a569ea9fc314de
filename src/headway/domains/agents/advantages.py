"""How much better actions were than expected, and rewards in one scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPS = 1e-8
_FARTHEST = 10.0  # standard deviations of a return that a scaled reward may be


def advantages(
    rewards: Float[np.ndarray, "T N"],
    values: Float[np.ndarray, "T N"],
    following: Float[np.ndarray, "T N"],
    ended: Bool[np.ndarray, "T N"],
    over: Bool[np.ndarray, "T N"],
    discount: float,
    trace: float,
) -> Float[np.ndarray, "T N"]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    `following` are the values of the states that actions led to. What `ended` has no value after it; what is `over`
    without that was cut off by a limit of time, after which it would have gone on: its value counts, and none of the
    advantages of the next episode do.
    """
    errors = rewards + discount * following * ~ended - values
    found = np.empty_like(errors)
    later = np.zeros(errors.shape[1], errors.dtype)
    for step in range(len(errors) - 1, -1, -1):
        later = errors[step] + discount * trace * later * ~over[step]
        found[step] = later
    return found


class ReturnScale:
    """Divides rewards by the standard deviation of the discounted sum of those so far in an episode (Engstrom et al.
    2020, appendix A.2), over all that was seen.
    """

    def __init__(self, rows: int, discount: float) -> None:
        self.discount = discount
        self.sums = np.zeros(rows)
        self.mean, self.variance, self.count = 0.0, 1.0, 0.0

    def scaled(self, rewards: Float[np.ndarray, "T N"], over: Bool[np.ndarray, "T N"]) -> Float[np.ndarray, "T N"]:
        """The rewards of the next T steps, of which these are taken into account first."""
        seen = np.empty_like(rewards)
        for step, reward in enumerate(rewards):
            self.sums = self.discount * self.sums + reward
            seen[step] = self.sums
            self.sums = np.where(over[step], 0.0, self.sums)
        self._see(seen)
        return np.clip(rewards / np.sqrt(self.variance + _EPS), -_FARTHEST, _FARTHEST)

    def _see(self, sums: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979, equation 2.1."""
        new, total = float(sums.size), self.count + sums.size
        shift = float(sums.mean()) - self.mean
        squares = self.count * self.variance + new * float(sums.var()) + shift**2 * self.count * new / total
        self.mean += shift * new / total
        self.variance, self.count = squares / total, total

    def state(self) -> dict[str, Tensor]:
        known = [self.mean, self.variance, self.count]
        return {"sums": torch.from_numpy(self.sums.copy()), "known": torch.tensor(known, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sums = state["sums"].numpy().copy()
        self.mean, self.variance, self.count = state["known"].tolist()
