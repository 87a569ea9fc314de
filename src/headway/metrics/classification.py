"""How often a class is right: accuracy and F1, each with its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headway.errors import UserError
from headway.metrics.intervals import bootstrap, wilson

Scores = dict[str, float | list[float]]


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """`accuracy` of classes [N] with its interval, and `samples`."""
    right = np.asarray(predicted) == np.asarray(labels)
    hits, count = int(right.sum()), right.size
    if count == 0:
        raise UserError("there are 0 samples to measure; give at least one")
    return {"accuracy": hits / count, "accuracy_interval": wilson(hits, count), "samples": count}


def f1_score(predicted: ArrayLike, labels: ArrayLike, seed: int = 0) -> Scores:
    """`f1` of classes [N], int: the mean over classes of 2 hits / (predicted + labelled), and its interval.

    Classes that are neither predicted nor labelled do not count. (The micro average of all hits over all samples is
    the accuracy, where every sample has one class.)
    """
    table = np.stack([np.asarray(labels), np.asarray(predicted)], axis=1)
    if len(table) == 0:
        raise UserError("there are 0 samples to measure; give at least one")
    kinds, times = np.unique(table, axis=0, return_counts=True)
    return {"f1": float(_macro(times[None], kinds)[0]), "f1_interval": bootstrap(table, _macro, seed)}


def class_scores(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """What `evaluate` says of classes: accuracy, macro F1, and how many samples there were."""
    return {**accuracy(predicted, labels), **f1_score(predicted, labels)}


def _macro(draws: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Macro F1 [R] of resamples [R, K] of the kinds [K, 2] of (label, prediction)."""
    labels, predicted = kinds.T
    hits = _by_class(draws * (labels == predicted), labels, int(kinds.max()) + 1)
    both = _by_class(draws, labels, hits.shape[1]) + _by_class(draws, predicted, hits.shape[1])
    seen = both > 0
    return (2 * hits / np.where(seen, both, 1)).sum(1) / seen.sum(1)


def _by_class(draws: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Sums [R, C] of the columns of `draws` [R, K] that have each class."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(draws), count))
    sums[:, present] = np.add.reduceat(draws[:, order], starts, axis=1)
    return sums
