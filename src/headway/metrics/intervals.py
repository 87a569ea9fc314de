"""95 % intervals as [low, high] for proportions, means, correlations and playing strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from headway.errors import UserError

Z = 1.959964  # 95 % of a normal distribution is within this many standard deviations
TAILS = (2.5, 97.5)  # percentiles
RESAMPLES = 1000
_CHUNK = 1 << 22  # weights in memory at once


def wilson_interval(successes: int, count: int) -> list[float]:
    """The interval for a proportion (Wilson 1927). It is within [0, 1], and valid at 0 and 1 and for small counts."""
    if not 0 <= successes <= count or count == 0:
        raise UserError(f"{successes} of {count} is not a proportion; pass at least one sample")
    share, spread = successes / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> list[float]:
    """The interval for the mean of samples [N]."""
    values = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(values, np.ones_like(values), seed)


def bootstrap_ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> list[float]:
    """The interval for sum(numerators) / sum(denominators), such as WER or loss per token, from resamples of the [N]
    samples.
    """
    table = np.stack(np.broadcast_arrays(numerators, denominators), axis=1).astype(np.float64)
    count = len(table)
    if count == 0 or not table[:, 1].sum() > 0:
        raise UserError(
            f"{count} samples with a total size of {table[:, 1].sum():g} have no rate; pass a non-empty sample"
        )

    def ratios(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        tops, bottoms = (counts @ rows).T
        return tops[bottoms > 0] / bottoms[bottoms > 0]

    return bootstrap(table, ratios, seed)


def bootstrap(
    table: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int = 0
) -> list[float]:
    """The bootstrap interval for a statistic of samples, which are the rows of `table` [N, F].

    Because rows repeat, `statistic(counts, rows)` takes the distinct `rows` [K, F] and their `counts` [R, K] per
    resample, and returns one number per resample, NaN if undefined.
    """
    rows, counts = np.unique(table, axis=0, return_counts=True)  # error counts repeat, so few rows are distinct
    generator = np.random.default_rng(seed)
    batch_size = max(1, min(RESAMPLES, _CHUNK // len(rows)))
    statistics = []
    for start in range(0, RESAMPLES, batch_size):
        resampled = generator.multinomial(len(table), counts / len(table), size=min(batch_size, RESAMPLES - start))
        statistics.append(statistic(resampled, rows))
    low, high = np.nanpercentile(np.concatenate(statistics), TAILS)
    return [float(low), float(high)]


def elo_difference(wins: int, draws: int, losses: int) -> dict[str, Any]:
    """The share of points and the Elo difference, each with its 95 % interval; None if unbounded.

    The share has Wilson's interval, for the number of games that would have the same variance without draws.
    """
    games = wins + draws + losses
    if games == 0:
        raise UserError("there are 0 games to estimate playing strength from; play at least one")
    score = (wins + draws / 2) / games
    variance = (wins + draws / 4) / games - score**2
    effective = games * score * (1 - score) / variance if variance > 0 else games
    z = 1.96
    middle = (score + z * z / (2 * effective)) / (1 + z * z / effective)
    spread = score * (1 - score) / effective + z * z / (4 * effective * effective)
    half = z / (1 + z * z / effective) * math.sqrt(spread)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {
        "score": score,
        "score_interval": [low, high],
        "elo": _elo(score),
        "elo_interval": [_elo(low), _elo(high)],
        "samples": games,
    }


def _elo(score: float) -> float | None:
    """Elo 1978: the rating difference at which a player is expected to get this share of the points."""
    return None if score <= 1e-9 or score >= 1 - 1e-9 else -400 * math.log10(1 / score - 1)


Scores = dict[str, float | list[float]]


def correlation_scores(predicted: ArrayLike, labels: ArrayLike, seed: int = 0) -> Scores:
    """`pearson` and `spearman` for numbers [N], with intervals, and `samples`; 0 if either variable is constant."""
    table = np.stack([np.asarray(predicted), np.asarray(labels)], axis=1).astype(np.float64)
    if len(table) < 2:
        raise UserError(f"{len(table)} samples are too few for a correlation; pass at least two")
    rows, counts = np.unique(table, axis=0, return_counts=True)
    scores: Scores = {}
    for name, statistic in (("pearson", _pearson), ("spearman", _spearman)):
        scores[name] = float(np.nan_to_num(statistic(counts[None], rows)[0]))
        scores[f"{name}_interval"] = bootstrap(table, lambda d, k, s=statistic: np.nan_to_num(s(d, k)), seed)
    return {**scores, "samples": len(table)}


def _pearson(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pearson's r [R] per resample, from the counts [R, K] of the distinct (x, y) rows [K, 2]; NaN if x or y is
    constant.
    """
    x, y = (rows - rows.mean(0)).T
    return _correlation(counts, np.broadcast_to(x, counts.shape), np.broadcast_to(y, counts.shape))


def _spearman(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pearson's r of ranks; equal values get their mean rank (Spearman 1904)."""
    return _correlation(counts, *(_ranks(counts, column) for column in rows.T))


def _correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The correlation between x and y [R, K], with each column weighted by `weights` [R, K]."""
    total = weights.sum(1, keepdims=True)
    x, y = (variable - (weights * variable).sum(1, keepdims=True) / total for variable in (x, y))
    xx, yy, xy = ((weights * product).sum(1) for product in (x * x, y * y, x * y))
    varies = (xx > 1e-12) & (yy > 1e-12)
    return np.where(varies, xy / np.sqrt(np.where(varies, xx * yy, 1.0)), np.nan)


def _ranks(resampled: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank [R, K] of each value [K] in resamples with these counts [R, K]."""
    distinct, inverse = np.unique(values, return_inverse=True)
    counts = np.zeros((len(resampled), len(distinct)))
    order = np.argsort(inverse, kind="stable")
    starts = np.unique(inverse[order], return_index=True)[1]
    counts[:] = np.add.reduceat(resampled[:, order], starts, axis=1)
    before = counts.cumsum(1) - counts
    return (before + (counts + 1) / 2)[:, inverse]
