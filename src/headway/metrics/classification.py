"""Metrics of classification, tagged entities and vector retrieval."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from headway.errors import UserError
from headway.metrics.intervals import bootstrap, bootstrap_ratio, wilson

Scores = dict[str, float | list[float]]


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """`accuracy` of classes [N] with its interval, and the number of `samples`."""
    right = np.asarray(predicted) == np.asarray(labels)
    hits, count = int(right.sum()), right.size
    if count == 0:
        raise UserError("there are 0 samples to evaluate; pass at least one")
    return {"accuracy": hits / count, "accuracy_interval": wilson(hits, count), "samples": count}


def f1_score(predicted: ArrayLike, labels: ArrayLike, seed: int = 0) -> Scores:
    """Macro `f1` of classes [N], int: the mean over classes of 2 hits / (predicted + labelled), with its interval.

    Classes that are neither predicted nor labelled do not count. (If every sample has one class, the micro average is
    the accuracy.)
    """
    table = np.stack([np.asarray(labels), np.asarray(predicted)], axis=1)
    if len(table) == 0:
        raise UserError("there are 0 samples to evaluate; pass at least one")
    kinds, times = np.unique(table, axis=0, return_counts=True)
    return {"f1": float(_macro(times[None], kinds)[0]), "f1_interval": bootstrap(table, _macro, seed)}


def class_scores(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """The scores that `evaluate` reports for classes: accuracy, macro F1 and the number of samples."""
    return {**accuracy(predicted, labels), **f1_score(predicted, labels)}


def _macro(draws: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Macro F1 [R] of resamples: counts [R, K] of the distinct (label, prediction) rows [K, 2]."""
    labels, predicted = kinds.T
    hits = _by_class(draws * (labels == predicted), labels, int(kinds.max()) + 1)
    both = _by_class(draws, labels, hits.shape[1]) + _by_class(draws, predicted, hits.shape[1])
    seen = both > 0
    return (2 * hits / np.where(seen, both, 1)).sum(1) / seen.sum(1)


def _by_class(draws: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Sums [R, C] of the columns of `counts` [R, K] by class."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(draws), count))
    sums[:, present] = np.add.reduceat(draws[:, order], starts, axis=1)
    return sums


OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_SAME = {"L": "E", "U": "S"}  # BILOU's letters


class EntitySpan(NamedTuple):
    """An entity of a kind: words start to stop - 1."""

    kind: str
    start: int
    stop: int


def has_spans(tags: Iterable[str]) -> bool:
    """Whether tags mark entities (B-PER, I-PER, O; BIOES, BILOU) rather than single words (NN, VB)."""
    known = set(tags) - {OUTSIDE}
    return bool(known) and all(_TAG.fullmatch(tag) for tag in known)


def spans(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities of a sentence, from BIO (either variant), BIOES or BILOU tags, valid or not.

    As in conlleval, an entity starts at B and S, after O, E and S, and when the kind changes; it ends before the next
    start or O.
    """
    found: list[EntitySpan] = []
    kind, start, last = "", 0, OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, here = _parts(tag)
        begins = letter in "BS" or last in (OUTSIDE, "E", "S") or here != kind
        if last != OUTSIDE and (letter == OUTSIDE or begins):
            found.append(EntitySpan(kind, start, place))
        if letter != OUTSIDE and begins:
            kind, start = here, place
        last = letter
    return found


def _parts(tag: str) -> tuple[str, str]:
    match = _TAG.fullmatch(tag)
    if match is None:
        return (OUTSIDE, "") if tag == OUTSIDE else ("I", tag)
    return _SAME.get(match[1], match[1]), match[2]


def entity_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], seed: int = 0) -> Scores:
    """`precision`, `recall` and `f1` of entities over all sentences; an entity is correct if kind, start and stop are.

    The interval of `f1` resamples sentences. Without predicted or labelled entities, the rate is 0.
    """
    matched = [_matches(one, other) for one, other in zip(predicted, labels, strict=True)]
    hits, said, true = ([sum(part.values()) for part in parts] for parts in zip(*matched)) if matched else ([], [], [])
    doubled, both = [2 * hit for hit in hits], [a + b for a, b in zip(said, true)]
    return {
        "f1": sum(doubled) / max(1, sum(both)),
        "f1_interval": bootstrap_ratio(doubled, both, seed) if any(both) else [0.0, 0.0],
        "precision": sum(hits) / max(1, sum(said)),
        "recall": sum(hits) / max(1, sum(true)),
    }


class EntityCounts(NamedTuple):
    """Numbers of entities of one kind: labelled, predicted, and both."""

    labelled: int
    predicted: int
    hits: int


def entity_counts(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, EntityCounts]:
    """The counts of each kind of entity over all sentences, sorted by name."""
    hits, said, true = Counter[str](), Counter[str](), Counter[str]()
    for one, other in zip(predicted, labels, strict=True):
        for total, part in zip((hits, said, true), _matches(one, other)):
            total.update(part)
    return {kind: EntityCounts(true[kind], said[kind], hits[kind]) for kind in sorted({*said, *true})}


def _matches(predicted: Sequence[str], labels: Sequence[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """The number of correct, predicted and labelled entities of each kind in a sentence."""
    ours, theirs = set(spans(predicted)), set(spans(labels))
    hits, said, true = (Counter(span.kind for span in found) for found in (ours & theirs, ours, theirs))
    return hits, said, true


def entity_kind(tag: str) -> str:
    """The entity kind of a tag; O for a word outside entities."""
    return _parts(tag)[1] or OUTSIDE


def tag_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> Scores:
    """The scores that `evaluate` reports for tags: accuracy over words; for entities precision, recall and F1."""
    pairs = [pair for one, other in zip(predicted, labels, strict=True) for pair in zip(one, other, strict=True)]
    if not pairs:
        raise UserError("there are 0 words to evaluate; pass at least one")
    hits = sum(one == other for one, other in pairs)
    scores: Scores = {"accuracy": hits / len(pairs), "accuracy_interval": wilson(hits, len(pairs))}
    entities = entity_scores(predicted, labels) if has_spans(tag for _, tag in pairs) else {}
    return {**entities, **scores, "words": len(pairs), "samples": len(labels)}


_ROWS = 1024  # queries whose similarities are in memory at once


def partner_recall(queries: np.ndarray, partners: np.ndarray, at: Sequence[int] = (1, 5)) -> Scores:
    """`recall_at_K`: the share of queries [N, D] whose partner [N, D] is among the K nearest of all partners.

    Partners as near as the query's own (equal texts) do not count against it.
    """
    if len(queries) == 0:
        raise UserError("there are 0 pairs to evaluate; pass at least one")
    found = []  # for each query, the number of partners nearer than its own
    for start in range(0, len(queries), _ROWS):
        similar = queries[start : start + _ROWS] @ partners.T
        own = similar[np.arange(len(similar)), start + np.arange(len(similar))]
        found.append((similar > own[:, None] + 1e-6).sum(1))
    ranks = np.concatenate(found)
    scores: Scores = {}
    for most in at:
        hits = int((ranks < most).sum())
        scores[f"recall_at_{most}"] = hits / len(ranks)
        scores[f"recall_at_{most}_interval"] = wilson(hits, len(ranks))
    return {**scores, "samples": len(ranks)}


def nearest_centroid(train: np.ndarray, train_labels: np.ndarray, vectors: np.ndarray, labels: np.ndarray) -> Scores:
    """`accuracy` of predicting, for each of `vectors` [N, D], the class with the most similar mean vector in `train`
    [M, D].
    """
    classes = np.unique(train_labels)
    centres = np.stack([train[train_labels == label].mean(0) for label in classes])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return accuracy(classes[(vectors @ centres.T).argmax(1)], labels)


def neighbour_recall(vectors: np.ndarray, labels: np.ndarray, at: Sequence[int] = (1, 5)) -> Scores:
    """`recall_at_K`: the share of vectors [N, D] with one of the same label [N] among their K nearest neighbours."""
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} vectors are too few for neighbours; pass at least two")
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
