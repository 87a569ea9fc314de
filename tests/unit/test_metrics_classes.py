"""Accuracy, F1, correlation and retrieval against cases worked out by hand and plain forms."""

from __future__ import annotations

import numpy as np
import pytest

from headway.errors import UserError
from headway.metrics import accuracy, class_scores, correlation_scores, f1_score, nearest_centroid, paired_recall


def test_accuracy_and_macro_f1_by_hand() -> None:
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    scores = class_scores(predicted, labels)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert scores["samples"] == 6


def test_classes_that_no_one_names_do_not_count_and_missed_ones_do() -> None:
    assert f1_score([0, 0], [0, 0])["f1"] == 1.0
    assert f1_score([7, 7], [7, 7])["f1"] == 1.0
    assert f1_score([0, 1], [0, 0])["f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_intervals_of_f1_are_those_of_plain_resampling() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(4, size=400)
    predicted = np.where(generator.random(400) < 0.7, labels, generator.integers(4, size=400))
    low, high = f1_score(predicted, labels)["f1_interval"]
    draws = [generator.integers(400, size=400) for _ in range(400)]
    plain = np.percentile([f1_score(predicted[rows], labels[rows])["f1"] for rows in draws], (2.5, 97.5))
    assert [low, high] == pytest.approx(plain.tolist(), abs=0.012)
    assert low < f1_score(predicted, labels)["f1"] < high


def test_no_samples_are_an_error() -> None:
    for measure in (accuracy, f1_score, correlation_scores):
        with pytest.raises(UserError, match="0 samples"):
            measure([], [])
    with pytest.raises(UserError, match="0 pairs"):
        paired_recall(np.zeros((0, 3)), np.zeros((0, 3)))


def test_correlations_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 4.0, 9.0, 16.0, 25.0]
    scores = correlation_scores(x, y)
    assert scores["pearson"] == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    assert scores["spearman"] == pytest.approx(1.0)
    assert correlation_scores(x, y[::-1])["spearman"] == pytest.approx(-1.0)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    x, y = [1, 2, 2, 3], [1, 3, 2, 4]
    ranks = np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1]
    assert correlation_scores(x, y)["spearman"] == pytest.approx(float(ranks))


def test_intervals_of_correlations_are_those_of_plain_resampling() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=200).round(1)
    y = (x + generator.normal(size=200)).round(1)
    scores = correlation_scores(x, y)
    draws = [generator.integers(200, size=200) for _ in range(400)]
    for name in ("pearson", "spearman"):
        plain = [correlation_scores_plain(x[rows], y[rows], name) for rows in draws]
        assert scores[f"{name}_interval"] == pytest.approx(np.percentile(plain, (2.5, 97.5)).tolist(), abs=0.025)


def correlation_scores_plain(x: np.ndarray, y: np.ndarray, name: str) -> float:
    def ranked(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    sides = (x, y) if name == "pearson" else (ranked(x), ranked(y))
    return float(np.corrcoef(*sides)[0, 1])


def test_a_side_that_never_changes_has_no_correlation() -> None:
    scores = correlation_scores([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert scores["pearson"] == scores["spearman"] == 0.0


def test_recall_counts_partners_that_are_nearer() -> None:
    queries = np.eye(4)
    partners = np.eye(4)[[0, 1, 3, 2]]
    scores = paired_recall(queries, partners, at=(1, 2, 4))
    assert scores["recall_at_1"] == 0.5
    assert scores["recall_at_4"] == 1.0
    twins = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert paired_recall(twins, twins)["recall_at_1"] == 1.0  # an equal partner is no rival


def test_recall_in_parts_is_recall_at_once() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(1500, 8))
    other = one + 2 * generator.normal(size=one.shape)
    similar = one @ other.T
    plain = np.mean((similar > np.diag(similar)[:, None]).sum(1) < 5)
    assert paired_recall(one, other)["recall_at_5"] == pytest.approx(plain)


def test_the_nearest_centre_names_the_class() -> None:
    train = np.array([[1.0, 0.1], [0.9, 0.0], [0.0, 1.0]])
    scores = nearest_centroid(train, np.array([5, 5, 9]), np.array([[1.0, 0.2], [0.1, 1.0], [1.0, 0.9]]), [5, 9, 9])
    assert scores["accuracy"] == pytest.approx(2 / 3)
