"""Entities as conlleval finds them, in sound and unsound tags, and their scores."""

from __future__ import annotations

import pytest

from headway.errors import UserError
from headway.metrics import EntitySpan, entity_scores, entity_spans, has_spans, tag_scores
from headway.metrics.classification import entity_counts


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER I-PER O I-PER", [("PER", 0, 2), ("PER", 3, 4)]),  # IOB1, and BIO without its B
        ("I-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("O I-PER B-PER O", [("PER", 1, 2), ("PER", 2, 3)]),
        ("B-PER E-PER S-PER B-LOC I-LOC E-LOC", [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 6)]),
        ("E-PER E-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("S-PER I-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER L-PER U-LOC", [("PER", 0, 2), ("LOC", 2, 3)]),  # BILOU
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entity_spans(tags.split()) == [EntitySpan(*each) for each in found]


def test_scores_by_hand() -> None:
    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    scores = tag_scores(predicted, labels)
    assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx(6 / 7)
    assert (scores["samples"], scores["words"]) == (2, 7)
    low, high = scores["f1_interval"]
    assert 0.4 < low <= scores["f1"] <= high == 1.0


def test_a_wrong_kind_and_a_wrong_edge_are_wrong() -> None:
    assert entity_scores([["B-PER"]], [["B-LOC"]])["f1"] == 0.0
    assert entity_scores([["B-PER", "O"]], [["B-PER", "I-PER"]])["f1"] == 0.0
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0


def test_each_kind_of_entity_is_counted() -> None:
    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "B-PER"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC", "B-PER"]]
    counts = entity_counts(predicted, labels)
    assert counts == {"LOC": (1, 2, 1), "ORG": (1, 0, 0), "PER": (2, 2, 1)}
    scores = entity_scores(predicted, labels)
    hits, predictions = (sum(one[place] for one in counts.values()) for place in (2, 1))
    assert scores["precision"] == hits / predictions


def test_tags_without_entities_have_accuracy_alone() -> None:
    assert not has_spans(["NN", "VB", "O"])
    assert not has_spans(["O"])
    assert has_spans(["O", "I-PER"])
    scores = tag_scores([["NN", "VB"]], [["NN", "NN"]])
    assert scores["accuracy"] == 0.5
    assert "f1" not in scores
    scores = tag_scores([["O", "B-PER"]], [["O", "O"]], entities=True)  # a held-out part without entities
    assert (scores["f1"], scores["precision"], scores["accuracy"]) == (0.0, 0.0, 0.5)
    with pytest.raises(UserError, match="0 words"):
        tag_scores([], [])
