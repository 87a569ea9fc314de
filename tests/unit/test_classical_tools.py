"""The classical tools that benchmarks/scores.py compares with, and the references that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DIGITS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four"}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_the_phrase_model_learns_words_and_their_order() -> None:
    from phrase_model import PhraseModel, links, phrases, word_table

    random = np.random.default_rng(0)
    sources = [[str(word) for word in random.choice(list(DIGITS), 4)] for _ in range(200)]
    pairs = [(source, [DIGITS[word] for word in source]) for source in sources]
    model = PhraseModel(pairs)
    assert model.translate(["zwei", "vier", "eins"], 0.5, 0.0) == ["two", "four", "one"]
    table = word_table(pairs)
    assert max(table["drei"], key=table["drei"].__getitem__) == "three"
    assert links(["drei", "eins"], ["three", "one"], table) == {(0, 0), (1, 1)}
    assert (("a", "b"), ("x", "y")) in phrases(["a", "b"], ["x", "y"], {(0, 1), (1, 0)})
    assert (("a",), ("x",)) not in phrases(["a", "b"], ["x", "y"], {(0, 1), (1, 0)})


@pytest.mark.usefixtures("benchmarks")
def test_gradients_depend_on_directions_and_not_on_brightness() -> None:
    from score_tools import gradients

    across = np.tile(np.sin(np.arange(16) * 0.8), (16, 1))
    images = np.stack([across, across.T, 3 * across + 5])
    first, second, brighter = gradients(images)
    assert np.abs(first - second).max() > 0.1
    assert np.abs(first - brighter).max() < 0.01


@pytest.mark.usefixtures("benchmarks")
def test_the_shipped_references_are_those_of_the_results() -> None:
    import scores

    shipped = json.loads((ROOT / "src/headway/learn/plan/references.json").read_text(encoding="utf-8"))["references"]
    result = scores.read()
    assert scores.rows(result["sets"]) == shipped
    report = scores.compare(result["sets"])
    assert report["all"] == result["report"]["all"]


@pytest.mark.usefixtures("benchmarks")
def test_each_application_has_two_sets() -> None:
    from score_sets import SETS

    applications = [chosen.application for chosen in SETS.values()]
    assert len(SETS) >= 24
    assert min(applications.count(application) for application in set(applications)) >= 2
