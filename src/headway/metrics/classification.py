"""Metrics for classification, tagged entities, vector retrieval and rankings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from headway.errors import UserError
from headway.metrics.intervals import bootstrap, bootstrap_mean, bootstrap_ratio, wilson_interval

Scores = dict[str, float | list[float]]


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """`accuracy` for classes [N] with its interval, and the number of `samples`."""
    correct = np.asarray(predicted) == np.asarray(labels)
    hits, count = int(correct.sum()), correct.size
    if count == 0:
        raise UserError("there are 0 samples to evaluate; pass at least one")
    return {"accuracy": hits / count, "accuracy_interval": wilson_interval(hits, count), "samples": count}


def f1_score(predicted: ArrayLike, labels: ArrayLike, seed: int = 0) -> Scores:
    """Macro `f1` for classes [N], int: the mean over classes of 2 hits / (predicted + labelled), with its interval.

    Classes that are neither predicted nor labelled do not count. (If every sample has one class, the micro average is
    the accuracy.)
    """
    table = np.stack([np.asarray(labels), np.asarray(predicted)], axis=1)
    if len(table) == 0:
        raise UserError("there are 0 samples to evaluate; pass at least one")
    rows, counts = np.unique(table, axis=0, return_counts=True)
    return {"f1": float(_macro(counts[None], rows)[0]), "f1_interval": bootstrap(table, _macro, seed)}


def class_scores(predicted: ArrayLike, labels: ArrayLike) -> Scores:
    """The scores that `evaluate` reports for classes: accuracy, macro F1 and the number of samples."""
    return {**accuracy(predicted, labels), **f1_score(predicted, labels)}


def _macro(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Macro F1 [R] per resample, from the counts [R, K] of the distinct (label, prediction) rows [K, 2]."""
    labels, predicted = rows.T
    hits = _by_class(counts * (labels == predicted), labels, int(rows.max()) + 1)
    both = _by_class(counts, labels, hits.shape[1]) + _by_class(counts, predicted, hits.shape[1])
    occurs = both > 0
    return (2 * hits / np.where(occurs, both, 1)).sum(1) / occurs.sum(1)


def _by_class(counts: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Sums [R, C] of the columns in `counts` [R, K], by class."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(counts), count))
    sums[:, present] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums


OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_BILOU_LETTERS = {"L": "E", "U": "S"}  # BILOU letters, as BIOES


class EntitySpan(NamedTuple):
    """An entity of one kind, in words start to stop - 1."""

    kind: str
    start: int
    stop: int


def has_spans(tags: Iterable[str]) -> bool:
    """Whether tags mark entities (B-PER, I-PER, O; BIOES, BILOU) rather than single words (NN, VB)."""
    labels = set(tags) - {OUTSIDE}
    return bool(labels) and all(_TAG.fullmatch(tag) for tag in labels)


def entity_spans(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities in a sentence, from BIO (either variant), BIOES or BILOU tags, valid or not.

    As in conlleval, an entity starts at B and S, after O, E and S, and wherever the kind changes; it ends before the
    next start or O.
    """
    entities: list[EntitySpan] = []
    kind, start, last = "", 0, OUTSIDE
    for index, tag in enumerate([*tags, OUTSIDE]):
        letter, tag_kind = _split_tag(tag)
        starts = letter in "BS" or last in (OUTSIDE, "E", "S") or tag_kind != kind
        if last != OUTSIDE and (letter == OUTSIDE or starts):
            entities.append(EntitySpan(kind, start, index))
        if letter != OUTSIDE and starts:
            kind, start = tag_kind, index
        last = letter
    return entities


def _split_tag(tag: str) -> tuple[str, str]:
    match = _TAG.fullmatch(tag)
    if match is None:
        return (OUTSIDE, "") if tag == OUTSIDE else ("I", tag)
    return _BILOU_LETTERS.get(match[1], match[1]), match[2]


def entity_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], seed: int = 0) -> Scores:
    """`precision`, `recall` and `f1` for entities over all sentences; an entity is correct if its kind, start and stop
    are.

    The interval for `f1` resamples sentences. A rate without predicted or labelled entities is 0.
    """
    matched = [_match_entities(prediction, label) for prediction, label in zip(predicted, labels, strict=True)]
    hits, predicted_counts, labelled_counts = (
        ([sum(part.values()) for part in parts] for parts in zip(*matched)) if matched else ([], [], [])
    )
    doubled, both = [2 * hit for hit in hits], [a + b for a, b in zip(predicted_counts, labelled_counts)]
    return {
        "f1": sum(doubled) / max(1, sum(both)),
        "f1_interval": bootstrap_ratio(doubled, both, seed) if any(both) else [0.0, 0.0],
        "precision": sum(hits) / max(1, sum(predicted_counts)),
        "recall": sum(hits) / max(1, sum(labelled_counts)),
    }


class EntityCounts(NamedTuple):
    """The number of entities of one kind that are labelled, predicted, or both."""

    labelled: int
    predicted: int
    hits: int


def entity_counts(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, EntityCounts]:
    """Counts for each kind of entity over all sentences, sorted by name."""
    hits, predicted_counts, labelled_counts = Counter[str](), Counter[str](), Counter[str]()
    for prediction, label in zip(predicted, labels, strict=True):
        for total, part in zip((hits, predicted_counts, labelled_counts), _match_entities(prediction, label)):
            total.update(part)
    return {
        kind: EntityCounts(labelled_counts[kind], predicted_counts[kind], hits[kind])
        for kind in sorted({*predicted_counts, *labelled_counts})
    }


def _match_entities(predicted: Sequence[str], labels: Sequence[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """The number of correct, predicted and labelled entities in a sentence, by kind."""
    predicted_spans, labelled_spans = set(entity_spans(predicted)), set(entity_spans(labels))
    hits, predicted_counts, labelled_counts = (
        Counter(span.kind for span in entities)
        for entities in (predicted_spans & labelled_spans, predicted_spans, labelled_spans)
    )
    return hits, predicted_counts, labelled_counts


def entity_kind(tag: str) -> str:
    """The entity type in a tag; O for a word outside any entity."""
    return _split_tag(tag)[1] or OUTSIDE


def tag_scores(
    predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], entities: bool | None = None
) -> Scores:
    """The scores that `evaluate` reports for tags: accuracy over words and, if the tags mark `entities` (None: if these
    labels do), precision, recall and F1.
    """
    pairs = [
        pair
        for prediction, label in zip(predicted, labels, strict=True)
        for pair in zip(prediction, label, strict=True)
    ]
    if not pairs:
        raise UserError("there are 0 words to evaluate; pass at least one")
    hits = sum(prediction == label for prediction, label in pairs)
    scores: Scores = {"accuracy": hits / len(pairs), "accuracy_interval": wilson_interval(hits, len(pairs))}
    if entities is None:
        entities = has_spans(tag for _, tag in pairs)
    return {
        **(entity_scores(predicted, labels) if entities else {}),
        **scores,
        "words": len(pairs),
        "samples": len(labels),
    }


_QUERIES_AT_ONCE = 1024  # queries whose similarities are in memory at once


def paired_recall(queries: np.ndarray, partners: np.ndarray, at: Sequence[int] = (1, 5)) -> Scores:
    """`recall_at_K`: the share of queries [N, D] whose partner [N, D] is among the K nearest of all partners.

    Partners exactly as near as the query's own (equal texts) do not count against it.
    """
    if len(queries) == 0:
        raise UserError("there are 0 pairs to evaluate; pass at least one")
    nearer_counts = []  # for each query, the number of partners nearer than its own
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similar = queries[start : start + _QUERIES_AT_ONCE] @ partners.T
        own_similarity = similar[np.arange(len(similar)), start + np.arange(len(similar))]
        nearer_counts.append((similar > own_similarity[:, None] + 1e-6).sum(1))
    ranks = np.concatenate(nearer_counts)
    scores: Scores = {}
    for k in at:
        hits = int((ranks < k).sum())
        scores[f"recall_at_{k}"] = hits / len(ranks)
        scores[f"recall_at_{k}_interval"] = wilson_interval(hits, len(ranks))
    return {**scores, "samples": len(ranks)}


def nearest_centroid(train: np.ndarray, train_labels: np.ndarray, vectors: np.ndarray, labels: np.ndarray) -> Scores:
    """`accuracy` when each of `vectors` [N, D] is assigned the class with the most similar mean vector in `train` [M,
    D].
    """
    classes = np.unique(train_labels)
    centres = np.stack([train[train_labels == label].mean(0) for label in classes])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return accuracy(classes[(vectors @ centres.T).argmax(1)], labels)


def neighbour_recall(vectors: np.ndarray, labels: np.ndarray, at: Sequence[int] = (1, 5)) -> Scores:
    """`recall_at_K`: the share of vectors [N, D] with a vector of the same label [N] among their K nearest
    neighbours.
    """
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} vectors are too few to have neighbours; pass at least two")
    hits = np.zeros((len(vectors), len(at)), bool)
    for start in range(0, len(vectors), _QUERIES_AT_ONCE):
        rows = np.arange(start, min(start + _QUERIES_AT_ONCE, len(vectors)))
        similar = vectors[rows] @ vectors.T
        similar[np.arange(len(rows)), rows] = -np.inf
        max_neighbours = min(max(at), len(vectors) - 1)
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, :max_neighbours]
        same_label = labels[nearest] == labels[rows][:, None]
        hits[rows] = [[matches[:k].any() for k in at] for matches in same_label]
    scores: Scores = {}
    for k, column in zip(at, hits.T):
        scores[f"recall_at_{k}"] = float(column.mean())
        scores[f"recall_at_{k}_interval"] = wilson_interval(int(column.sum()), len(column))
    return {**scores, "samples": len(vectors)}


def ranking_scores(scores: np.ndarray, relevance: np.ndarray, queries: np.ndarray, at: int = 10) -> Scores:
    """NDCG (Järvelin and Kekäläinen 2002) and MRR of the first `at` documents, from the scores, the relevance from 0 to
    1 and the query numbers [N] of all documents: means over the queries that have a relevant document and another one.
    Empty without such queries.

    MRR counts documents with a relevance of at least half of the largest. Of equal scores, the less relevant document
    comes first.
    """
    order = np.argsort(queries, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(queries[order])) + 1)
    reciprocal_ranks, gains = [], []
    for group in groups:
        values = relevance[group].astype(np.float64)
        if values.max() <= 0 or (values == values[0]).all():
            continue
        ranked = values[np.lexsort((values, -scores[group]))][:at]
        hits = np.flatnonzero(ranked >= 0.5 * values.max())
        reciprocal_ranks.append(1 / (1 + hits[0]) if len(hits) else 0.0)
        discounts = 1 / np.log2(np.arange(2, 2 + len(ranked)))
        gains.append((ranked * discounts).sum() / (np.sort(values)[::-1][:at] * discounts).sum())
    if not gains:
        return {}
    means: Scores = {}
    for name, per_query in ((f"ndcg_at_{at}", gains), (f"mrr_at_{at}", reciprocal_ranks)):
        means[name] = float(np.mean(per_query))
        means[f"{name}_interval"] = bootstrap_mean(per_query)
    return {**means, "queries": len(gains), "samples": len(scores)}
