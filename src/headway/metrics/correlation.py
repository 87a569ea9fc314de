"""How well numbers go with numbers: Pearson's and Spearman's correlation, each with its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headway.errors import UserError
from headway.metrics.intervals import bootstrap

Scores = dict[str, float | list[float]]


def correlation_scores(predicted: ArrayLike, labels: ArrayLike, seed: int = 0) -> Scores:
    """`pearson` and `spearman` of numbers [N], with intervals, and `samples`; 0 where a side never changes."""
    table = np.stack([np.asarray(predicted), np.asarray(labels)], axis=1).astype(np.float64)
    if len(table) < 2:
        raise UserError(f"{len(table)} samples have no correlation; give at least two")
    kinds, times = np.unique(table, axis=0, return_counts=True)
    scores: Scores = {}
    for name, statistic in (("pearson", _pearson), ("spearman", _spearman)):
        scores[name] = float(np.nan_to_num(statistic(times[None], kinds)[0]))
        scores[f"{name}_interval"] = bootstrap(table, lambda d, k, s=statistic: np.nan_to_num(s(d, k)), seed)
    return {**scores, "samples": len(table)}


def _pearson(draws: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Pearson's r [R] of resamples [R, K] of the kinds [K, 2] of (x, y); NaN where a side never changes."""
    x, y = (kinds - kinds.mean(0)).T
    return _correlation(draws, np.broadcast_to(x, draws.shape), np.broadcast_to(y, draws.shape))


def _spearman(draws: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Pearson's r of the ranks, equal values sharing the mean of theirs (Spearman 1904)."""
    return _correlation(draws, *(_ranks(draws, side) for side in kinds.T))


def _correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of x and y [R, K], where each column counts `weights` [R, K] times."""
    total = weights.sum(1, keepdims=True)
    x, y = (side - (weights * side).sum(1, keepdims=True) / total for side in (x, y))
    xx, yy, xy = ((weights * product).sum(1) for product in (x * x, y * y, x * y))
    varies = (xx > 1e-12) & (yy > 1e-12)
    return np.where(varies, xy / np.sqrt(np.where(varies, xx * yy, 1.0)), np.nan)


def _ranks(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank [R, K] of each value [K] in resamples [R, K] that hold it so many times."""
    distinct, places = np.unique(values, return_inverse=True)
    counts = np.zeros((len(draws), len(distinct)))
    order = np.argsort(places, kind="stable")
    starts = np.unique(places[order], return_index=True)[1]
    counts[:] = np.add.reduceat(draws[:, order], starts, axis=1)
    before = counts.cumsum(1) - counts
    return (before + (counts + 1) / 2)[:, places]
