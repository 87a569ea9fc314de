"""BLEU and chrF against sacrebleu itself, perplexity, and intervals against what is known of them."""

from __future__ import annotations

import gzip
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from headway.errors import UserError
from headway.metrics import (
    bits_per_byte,
    bleu,
    bootstrap_mean,
    bootstrap_ratio,
    chrf,
    language_scores,
    perplexity,
    rouge,
    translation_scores,
    wilson_interval,
)


@pytest.fixture(scope="module")
def sentences(data_dir: Path) -> list[str]:
    with gzip.open(data_dir / "translation/multi30k-test_2016_flickr.de.gz", "rt", encoding="utf-8") as file:
        return file.read().splitlines()[:300]


def without_third_word(sentence: str) -> str:
    words = sentence.split()
    return " ".join(words[:2] + words[3:])


def test_bleu_and_chrf_are_those_of_sacrebleu(sentences: list[str]) -> None:
    guesses = [without_third_word(sentence) for sentence in sentences]
    scores = translation_scores(guesses, sentences)
    assert scores["bleu"] == sacrebleu.corpus_bleu(guesses, [sentences]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(guesses, [sentences]).score
    assert scores["samples"] == 300
    assert f"version:{sacrebleu.__version__}" in scores["bleu_signature"]
    assert scores["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    for name in ("bleu", "chrf"):
        low, high = scores[f"{name}_interval"]
        assert low < scores[name] < high < low + 6
    assert scores == translation_scores(guesses, sentences)


def test_case_and_tokens_are_in_the_signature(sentences: list[str]) -> None:
    guesses = [sentence.lower() for sentence in sentences]
    assert bleu(guesses, sentences)["bleu"] < 99
    lowered = bleu(guesses, sentences, lowercase=True, tokenize="none")
    assert lowered["bleu"] == pytest.approx(100)
    assert "case:lc" in lowered["bleu_signature"]
    assert "tok:none" in lowered["bleu_signature"]


def test_several_references(sentences: list[str]) -> None:
    several = [[without_third_word(s), s] if i % 2 else [s] for i, s in enumerate(sentences)]
    assert bleu(sentences, several)["bleu"] == pytest.approx(100)
    assert chrf(sentences, several)["chrf"] == pytest.approx(100)


def test_nothing_right_is_zero() -> None:
    assert bleu(["xx"], ["yy"])["bleu_interval"] == [0, 0]


def test_sacrebleu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"pip install 'headway\[metrics\]'"):
        bleu(["a"], ["a"])


@pytest.mark.parametrize(
    ("guesses", "references", "message"),
    [(["a"], [], "1 translations do not match 0"), ([], [], "0 translations"), (["a"], [[]], "translation 0 has no")],
)
def test_what_cannot_be_scored(guesses, references, message) -> None:
    with pytest.raises(UserError, match=message):
        translation_scores(guesses, references)


def test_perplexity_and_bits() -> None:
    assert perplexity(10 * math.log(65), 10) == pytest.approx(65)
    assert perplexity(1e6, 1) == math.inf
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    scores = language_scores(20.0, 10, 40)
    assert scores == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "bits_per_byte": pytest.approx(0.5 / math.log(2)),
    }
    assert "bits_per_byte" not in language_scores(20.0, 10)
    with pytest.raises(UserError, match="0 tokens"):
        perplexity(1.0, 0)
    with pytest.raises(UserError, match="0 bytes"):
        language_scores(1.0, 1, 0)


def test_wilson() -> None:
    assert wilson_interval(5, 10) == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx([0, 0.2775], abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx([0.7225, 1], abs=1e-4)
    for wrong in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(UserError, match="not a proportion"):
            wilson_interval(*wrong)


def test_bootstrap_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, size=2000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    expected = [values.mean() - half, values.mean() + half]
    assert bootstrap_mean(values) == pytest.approx(expected, abs=0.02)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)
    assert bootstrap_ratio(values * 4, np.full(2000, 4)) == pytest.approx(bootstrap_mean(values), abs=0.03)


def test_bootstrap_of_repeated_counts() -> None:
    low, high = bootstrap_ratio([0, 1] * 5000, [1, 1] * 5000)
    assert [low, high] == pytest.approx(wilson_interval(5000, 10_000), abs=2e-3)


@pytest.mark.parametrize("samples", [([], []), ([1.0], [0.0])])
def test_no_samples_have_no_interval(samples) -> None:
    with pytest.raises(UserError, match="have no rate"):
        bootstrap_ratio(*samples)


def test_intervals_where_only_some_resamples_score() -> None:
    scores = translation_scores(
        ["a b c d e"] * 9 + ["the cat sat on the mat"], ["x y z w v"] * 9 + ["the cat sat on the mat"]
    )
    low, high = scores["bleu_interval"]  # type: ignore[misc]
    assert low == 0 < scores["bleu"] < high  # type: ignore[operator]


PUBLISHED = [  # summary, reference, ROUGE-1, ROUGE-2 and ROUGE-L
    ("police kill the gunman", "police killed the gunman", 3 / 4, 1 / 3, 3 / 4),  # Lin 2004, section 3.1
    ("the gunman kill police", "police killed the gunman", 3 / 4, 1 / 3, 2 / 4),
    ("the gunman police killed", "police killed the gunman", 1.0, 2 / 3, 2 / 4),
    ("testing", "testing one two", 0.5, 0.0, 0.5),  # the tests of Google's rouge_score
    ("testing one", "testing one two", 0.8, 2 / 3, 0.8),
    ("Testing, ONE!", "testing one", 1.0, 1.0, 1.0),
    ("", "testing one", 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize("case", range(len(PUBLISHED)))
def test_rouge_is_that_of_published_examples(case: int) -> None:
    summary, reference, *wanted = PUBLISHED[case]
    scores = rouge([summary], [["something else", reference]])
    assert [scores[name] for name in ("rouge1", "rouge2", "rougeL")] == pytest.approx(wanted)


def test_rouge_is_a_mean_over_summaries() -> None:
    both = rouge(["a b", "c d"], [["a b"], ["e f"]])
    assert (both["rouge1"], both["rougeL_interval"], both["samples"]) == (0.5, [0.0, 1.0], 2)
    with pytest.raises(UserError, match="0 summaries"):
        rouge([], [])
