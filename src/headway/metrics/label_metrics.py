"""Metrics for rare classes, multi-label targets and regression."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from headway.errors import UserError
from headway.metrics.classification import Scores, class_scores
from headway.metrics.intervals import bootstrap, bootstrap_mean, bootstrap_ratio, correlation_scores

_MIN_POSITIVES = 3  # minimum validation samples with a label for it to get its own threshold


def balanced_scores(predicted: ArrayLike, labels: ArrayLike, rare: Collection[int] = ()) -> Scores:
    """`class_scores` for classes [N], int, and `balanced_accuracy`, the mean recall over classes that occur.

    If there are `rare` classes, the mean F1 of those that occur (`rare_f1`) and the other balanced scores come first.
    """
    plain = class_scores(predicted, labels)
    table = np.stack([np.asarray(labels), np.asarray(predicted)], axis=1)
    balanced = _with_interval("balanced_accuracy", table, _balanced_accuracy)
    if not rare:
        return {**plain, **balanced, "samples": plain["samples"]}
    chosen = np.intersect1d(sorted(rare), table[:, 0])
    first: Scores = {}
    if len(chosen):
        first = _with_interval("rare_f1", table, lambda counts, rows: _f1_of(counts, rows, chosen))
    f1 = {name: plain[name] for name in ("f1", "f1_interval")}
    return {**first, **f1, **balanced, **plain}


def _with_interval(name: str, table: np.ndarray, statistic: object) -> Scores:
    rows, counts = np.unique(table, axis=0, return_counts=True)
    value = statistic(counts[None], rows)[0]  # type: ignore[operator]
    return {name: float(np.nan_to_num(value)), f"{name}_interval": bootstrap(table, statistic)}  # type: ignore[arg-type]


def _balanced_accuracy(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The mean recall over classes that occur, [R]."""
    labels, predicted = rows.T
    recalls = []
    for label in np.unique(labels):
        of_label = labels == label
        total = counts[:, of_label].sum(1)
        recalls.append(
            np.where(total > 0, counts[:, of_label & (predicted == label)].sum(1) / np.maximum(total, 1), -1)
        )
    recall_table = np.array(recalls)
    return np.where(recall_table >= 0, recall_table, 0).sum(0) / np.maximum((recall_table >= 0).sum(0), 1)


def _f1_of(counts: np.ndarray, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The mean F1 [R] over some classes; 0 for classes that are neither predicted nor labelled."""
    labels, predicted = rows.T
    scores = np.zeros((len(classes), len(counts)))
    for index, label in enumerate(classes):
        hits = counts[:, (labels == label) & (predicted == label)].sum(1)
        both = counts[:, labels == label].sum(1) + counts[:, predicted == label].sum(1)
        scores[index] = 2 * hits / np.maximum(both, 1)
    return scores.mean(0)


def label_scores(predicted: Bool[np.ndarray, "N C"], labels: Bool[np.ndarray, "N C"]) -> Scores:
    """Multi-label scores: `f1_micro`, `precision` and `recall` over all labels of all samples; `f1`, the mean F1 over
    labels that occur or are predicted; and `exact_match`, the share of samples with all labels correct.
    """
    if not len(labels):
        raise UserError("there are 0 samples to evaluate; pass at least one")
    hits = (predicted & labels).sum(1)
    predicted_counts, labelled_counts = predicted.sum(1), labels.sum(1)
    both = predicted_counts + labelled_counts
    exact = (predicted == labels).all(1)
    table = np.concatenate([predicted & labels, predicted.astype(np.int64) + labels], axis=1).astype(np.int64)
    return {
        "f1_micro": float(2 * hits.sum() / max(1, both.sum())),
        "f1_micro_interval": bootstrap_ratio(2 * hits, both) if both.sum() else [0.0, 0.0],
        **_with_interval("f1", table, _macro),
        "precision": float(hits.sum() / max(1, predicted_counts.sum())),
        "recall": float(hits.sum() / max(1, labelled_counts.sum())),
        "exact_match": float(exact.mean()),
        "exact_match_interval": bootstrap_mean(exact),
        "samples": len(labels),
    }


def _macro(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean F1 [R] over labels, from hits and predicted + labelled [K, 2 C]."""
    hits, both = np.split((counts @ rows).astype(np.float64), 2, axis=1)
    occurs = both > 0
    return (2 * hits / np.where(occurs, both, 1)).sum(1) / np.maximum(occurs.sum(1), 1)


def best_thresholds(scores: Float[np.ndarray, "N C"], labels: Bool[np.ndarray, "N C"]) -> list[float]:
    """For each label, the probability threshold that maximises its F1 on these samples.

    Labels with very few samples share the threshold that is best for all labels together.
    """
    shared = _threshold(scores.reshape(-1), labels.reshape(-1))
    return [
        _threshold(scores[:, label], labels[:, label]) if labels[:, label].sum() >= _MIN_POSITIVES else shared
        for label in range(scores.shape[1])
    ]


def _threshold(scores: Float[np.ndarray, "N"], labels: Bool[np.ndarray, "N"]) -> float:
    """The best threshold midway between two scores; among equally good ones, the nearest to 1/2. If no label is 1, it
    is 1/2.
    """
    if not labels.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + labels.sum())
    lower = np.append(ranked[1:], 0.0)
    cuts = (ranked + lower) / 2
    distinct = ranked > lower  # equal scores cannot be separated
    best = f1[distinct].max(initial=0.0)
    best_cuts = cuts[distinct & (f1 >= best - 1e-12)]
    return float(np.clip(best_cuts[np.abs(best_cuts - 0.5).argmin()], 1e-6, 1 - 1e-6)) if len(best_cuts) else 0.5


def number_scores(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """Scores for numbers [N]: `r2`, the share of explained variance (0 if all labels are equal), `mean_absolute_error`
    in the labels' unit, and both correlations.
    """
    table = np.stack([np.asarray(predicted), np.asarray(labels)], axis=1).astype(np.float64)
    if len(table) < 2:
        raise UserError(f"{len(table)} samples are too few for a correlation; pass at least two")
    errors = np.abs(table[:, 0] - table[:, 1])
    return {
        **_with_interval("r2", table, _r2),
        "mean_absolute_error": float(errors.mean()),
        "mean_absolute_error_interval": bootstrap_mean(errors),
        **correlation_scores(table[:, 0], table[:, 1]),
    }


def _r2(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """1 - squared errors / squared deviations of the labels, [R]; NaN if all labels are equal."""
    predicted, labels = (rows - rows[:, 1].mean()).T
    count = counts.sum(1)
    variance = counts @ labels**2 - (counts @ labels) ** 2 / count
    has_variance = variance > 1e-12 * np.maximum(1.0, counts @ labels**2)
    return np.where(
        has_variance, 1 - (counts @ (predicted - labels) ** 2) / np.where(has_variance, variance, 1.0), np.nan
    )
