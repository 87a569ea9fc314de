"""How well vectors find each other: recall of the partner, and the nearest centre of a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.errors import UserError
from headway.metrics.classification import accuracy
from headway.metrics.intervals import wilson

Scores = dict[str, float | list[float]]
_ROWS = 1024  # queries whose similarities are held at once


def partner_recall(queries: np.ndarray, partners: np.ndarray, at: Sequence[int] = (1, 5)) -> Scores:
    """`recall_at_K`: the share of queries [N, D] whose partner [N, D] is among the K nearest of all partners.

    Partners that are as near as its own (equal texts) do not count against a query.
    """
    if len(queries) == 0:
        raise UserError("there are 0 pairs to measure; give at least one")
    ranks = np.concatenate(
        [_ranks(queries[start : start + _ROWS], partners, start) for start in range(0, len(queries), _ROWS)]
    )
    scores: Scores = {}
    for most in at:
        hits = int((ranks < most).sum())
        scores[f"recall_at_{most}"] = hits / len(ranks)
        scores[f"recall_at_{most}_interval"] = wilson(hits, len(ranks))
    return {**scores, "samples": len(ranks)}


def _ranks(queries: np.ndarray, partners: np.ndarray, start: int) -> np.ndarray:
    """How many partners are nearer than its own, for each of the queries from `start` on."""
    similar = queries @ partners.T
    own = similar[np.arange(len(queries)), start + np.arange(len(queries))]
    return (similar > own[:, None] + 1e-6).sum(1)


def nearest_centroid(train: np.ndarray, train_labels: np.ndarray, vectors: np.ndarray, labels: np.ndarray) -> Scores:
    """`accuracy` of giving each of `vectors` [N, D] the class whose mean vector in `train` [M, D] is most like it."""
    classes = np.unique(train_labels)
    centres = np.stack([train[train_labels == label].mean(0) for label in classes])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return accuracy(classes[(vectors @ centres.T).argmax(1)], labels)


def neighbour_recall(vectors: np.ndarray, labels: np.ndarray, at: Sequence[int] = (1, 5)) -> Scores:
    """`recall_at_K`: the share of vectors [N, D] that have one of their label [N] among the K nearest of the others."""
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} vectors have no neighbours to measure; give at least two")
    hits = np.zeros((len(vectors), len(at)), bool)
    for start in range(0, len(vectors), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(vectors)))
        similar = vectors[rows] @ vectors.T
        similar[np.arange(len(rows)), rows] = -np.inf
        most = min(max(at), len(vectors) - 1)
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, :most]
        right = labels[nearest] == labels[rows][:, None]
        hits[rows] = [[found[:k].any() for k in at] for found in right]
    scores: Scores = {}
    for k, column in zip(at, hits.T):
        scores[f"recall_at_{k}"] = float(column.mean())
        scores[f"recall_at_{k}_interval"] = wilson(int(column.sum()), len(column))
    return {**scores, "samples": len(vectors)}
