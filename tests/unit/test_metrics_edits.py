"""Edit distance against the plain table, and the error rates that are made of it."""

from __future__ import annotations

import gzip
import random
from itertools import pairwise
from pathlib import Path

import pytest

from headway.errors import UserError
from headway.metrics import edit_distance, min_edits, pronunciation_error_rates, word_error_rate


def table_distance(first, second) -> int:
    """The textbook's table, a row at a time."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        above, row = row, [i]
        for j, right in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def test_distance_is_that_of_the_table() -> None:
    generator = random.Random(3)
    for trial in range(1500):
        longest = 150 if trial % 50 == 0 else 10
        first = [generator.randrange(3) for _ in range(generator.randrange(longest))]
        second = [generator.randrange(3) for _ in range(generator.randrange(longest))]
        assert edit_distance(first, second) == table_distance(first, second)


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("👍é", "👍e", 1)],
)
def test_known_distances(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edits


def test_distance_of_real_sentences(data_dir: Path) -> None:
    with gzip.open(data_dir / "translation/multi30k-val.de.gz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()[:300]
    for one, other in pairwise(lines):
        assert edit_distance(one, other) == edit_distance(other, one) == table_distance(one, other)


def test_the_nearest_reference_counts() -> None:
    assert min_edits("abc", ["xy", "abd"]) == (1, 3)
    assert min_edits("ab", ["a", "abc"]) == (1, 3)  # equally near: the longest


def test_word_error_rate() -> None:
    rates = word_error_rate(["the cat sat", "on  mat", ""], [["the cat sat"], ["on the mat"], ["now", "right now"]])
    assert rates["wer"] == pytest.approx(2 / 7)  # "now" is nearer to nothing than "right now" is
    assert rates["samples"] == 3
    low, high = rates["wer_interval"]
    assert 0 <= low <= rates["wer"] <= high


def test_pronunciations() -> None:
    guesses = ["HH AH L OW", "K AE T", "D AO"]
    known = [["HH EH L OW", "HH AH L OW"], ["K AE T"], ["D AO G"]]
    rates = pronunciation_error_rates(guesses, known)
    assert rates["wer"] == pytest.approx(1 / 3)
    assert rates["per"] == pytest.approx(1 / 10)
    assert rates["wer_interval"][0] < 1 / 3 < rates["wer_interval"][1]
    assert rates == pronunciation_error_rates(guesses, known)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a"], [], "1 hypotheses do not match 0 references"),
        ([], [], "0 samples"),
        (["a"], ["a b"], "references are plain strings"),
        (["a"], [[]], "has no reference"),
        (["a"], [[""]], "all 1 are empty"),
    ],
)
def test_what_cannot_be_measured(hypotheses, references, message) -> None:
    with pytest.raises(UserError, match=message):
        word_error_rate(hypotheses, references)
