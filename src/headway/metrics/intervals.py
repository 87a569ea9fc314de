"""95 % intervals as [low, high]: Wilson's for proportions, seeded bootstrap for means and ratios of sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from headway.errors import UserError

Z = 1.959964  # of the normal distribution, 95 % lie within this many standard deviations
TAILS = (2.5, 97.5)  # percentiles
RESAMPLES = 1000
_CHUNK = 1 << 22  # weights held at once


def wilson(successes: int, count: int) -> list[float]:
    """The interval of a proportion (Wilson 1927); within [0, 1], and sound at 0 and 1 and for small counts."""
    if not 0 <= successes <= count or count == 0:
        raise UserError(f"{successes} of {count} is no proportion; give at least one sample")
    share, spread = successes / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> list[float]:
    """The interval of the mean of samples [N]."""
    values = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(values, np.ones_like(values), seed)


def bootstrap_ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> list[float]:
    """The interval of sum(numerators) / sum(denominators), where samples [N] are drawn anew: WER, loss per token."""
    table = np.stack(np.broadcast_arrays(numerators, denominators), axis=1).astype(np.float64)
    count = len(table)
    if count == 0 or not table[:, 1].sum() > 0:
        raise UserError(f"{count} samples of size {table[:, 1].sum():g} give no rate; give at least one sample")

    def ratios(draws: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        tops, bottoms = (draws @ kinds).T
        return tops[bottoms > 0] / bottoms[bottoms > 0]

    return bootstrap(table, ratios, seed)


def bootstrap(
    table: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int = 0
) -> list[float]:
    """The interval of a statistic of samples, the rows of `table` [N, F], that are drawn anew.

    Rows repeat: `statistic(draws, kinds)` gets how often each of the different rows `kinds` [K, F] is in each resample,
    `draws` [R, K], and gives a number a resample; NaN where one has none.
    """
    kinds, times = np.unique(table, axis=0, return_counts=True)  # error counts repeat: few kinds, so few draws
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, _CHUNK // len(kinds)))
    found = []
    for start in range(0, RESAMPLES, at_once):
        draws = generator.multinomial(len(table), times / len(table), size=min(at_once, RESAMPLES - start))
        found.append(statistic(draws, kinds))
    low, high = np.nanpercentile(np.concatenate(found), TAILS)
    return [float(low), float(high)]
