"""Expected scores: quick classical methods, predictions from references, and the lines of plans and reports."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headway as hw
from headway.app.recipes import configure_recipe
from headway.learn.objective import Baseline
from headway.learn.objectives.baselines import InputVectors, NgramModel, kernels, ridge_predictions
from headway.learn.parallel.processes import Processes
from headway.learn.plan import choose
from headway.learn.plan.expected import (
    COVERAGE,
    ExpectedScore,
    Facts,
    Reference,
    expected_score,
    format_score,
    references,
)
from headway.learn.recipe import open_task
from headway.learn.run_report import expected_sentence

METHOD = "a linear model"


def reference(number: int, classical: float, score: float, tool: float | None = None, **changes: object) -> Reference:
    facts = Facts("classification", 5.0, 2000, Baseline(METHOD, "accuracy", classical))
    name = f"set-{number}"
    known = Reference(name, name, "accuracy", facts, score, None if tool is None else "a linear SVM", tool)
    return known._replace(**changes)  # type: ignore[arg-type]


def drawn(count: int, deviation: float = 0.2, seed: int = 0) -> list[Reference]:
    """References whose log-odds are 0.5 above those of the classical method, with noise."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        classical = float(random.normal(0.5, 1.0))
        final = classical + 0.5 + float(random.normal(0, deviation))
        rows.append(reference(number, *(1 / (1 + math.exp(-position)) for position in (classical, final))))
    return rows


def test_ridge_regression_separates_classes_and_neighbours_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    vectors = torch.nn.functional.one_hot(labels, 3).float() + 0.1 * torch.randn(60, 3, generator=generator)
    parts = [InputVectors(vectors[rows], list(labels[rows]), False) for rows in (slice(0, 45), slice(45, 60))]
    assert ridge_predictions(parts[0], parts[1], 3).tolist() == labels[45:].tolist()
    assert [int(labels[row]) for row in kernels(parts[0], parts[1])[1].argmax(1).tolist()] == labels[45:].tolist()


def test_probabilities_of_the_ngram_model_sum_to_one_and_order_helps() -> None:
    document = [0, 1, 2, 3] * 50
    models = [NgramModel([document], order, 6) for order in (1, 2, 3)]
    for model in models:
        for context in ((), (1,), (1, 2), (5, 5)):
            assert sum(model.probability(context, token) for token in range(6)) == pytest.approx(1)
    first, second, third = (model.nats([document]) for model in models)
    assert max(second, third) < 0.1 * first


def test_the_interval_covers_new_sets_about_as_often_as_stated() -> None:
    inside = []
    for seed in range(40):
        *known, new = drawn(13, seed=seed)
        found = expected_score(new.facts, known)
        assert found is not None
        assert found.low < found.score < found.high
        inside.append(found.low <= new.score <= found.high)
    assert COVERAGE - 0.15 <= np.mean(inside) <= 1.0


def test_the_interval_covers_rates_of_few_samples_too() -> None:
    """Both the classical method and the run are scored on 40 samples, and chance moves their rates."""
    inside, widths = [], []
    for seed in range(60):
        *known, new = drawn(13, seed=seed)
        chance = np.random.default_rng(seed)
        assert new.facts.baseline is not None
        classical, reached = (chance.binomial(40, rate) / 40 for rate in (new.facts.baseline.score, new.score))
        facts = new.facts._replace(baseline=Baseline(METHOD, "accuracy", classical))
        unaware, aware = (expected_score(facts._replace(evaluated=of), known) for of in (None, (40, 40)))
        assert unaware is not None
        assert aware is not None
        inside.append([found.low <= reached <= found.high for found in (unaware, aware)])
        widths.append(aware.high - aware.low)
        many = expected_score(facts._replace(evaluated=(40_000, 40_000)), known)
        assert many is not None
        assert many.low - unaware.low == pytest.approx(0, abs=0.005)
        assert many.high - unaware.high == pytest.approx(0, abs=0.005)
    unaware_share, aware_share = np.mean(inside, axis=0)
    assert COVERAGE - 0.08 <= aware_share <= 0.98
    assert unaware_share < aware_share - 0.1
    assert max(widths) < 0.8


def test_more_references_narrow_the_interval() -> None:
    facts = reference(0, 0.6, 0.7).facts
    widths = []
    for count in (1, 4, 16):
        found = expected_score(facts, drawn(count))
        assert found is not None
        widths.append(found.high - found.low)
    assert all(wide > narrow for wide, narrow in pairwise(widths)), widths


def test_a_recipe_whose_references_disagree_has_the_wider_interval() -> None:
    calm, wild = drawn(6, deviation=0.1), drawn(6, deviation=1.5, seed=1)
    wild = [row._replace(source=f"wild-{row.source}", facts=row.facts._replace(recipe="vision")) for row in wild]
    of_calm, of_wild = (expected_score(rows[0].facts, [*calm, *wild]) for rows in (calm, wild))
    assert of_calm is not None
    assert of_wild is not None
    ends = [[math.log(end / (1 - end)) for end in (found.low, found.high)] for found in (of_calm, of_wild)]
    widths = [high - low for low, high in ends]
    assert 1.5 * widths[0] < widths[1], widths


def test_sets_of_one_source_do_not_narrow_it() -> None:
    """Copies of one reference are no more evidence about new data."""
    facts, [single] = reference(0, 0.6, 0.7).facts, drawn(1)
    alone, copies = (expected_score(facts, rows) for rows in ([single], [single] * 5))
    assert alone is not None
    assert copies is not None
    assert copies.high - copies.low > 0.8 * (alone.high - alone.low)


def test_longer_runs_are_expected_to_reach_more() -> None:
    facts = reference(0, 0.6, 0.7).facts
    short, long = (expected_score(facts._replace(minutes=minutes), drawn(8)) for minutes in (2.0, 60.0))
    assert short is not None
    assert long is not None
    assert long.score > short.score


@pytest.mark.parametrize("tool", [0.95, 0.2])
def test_a_tool_is_named_with_its_expected_score(tool: float) -> None:
    """Which of the two is better is not predicted: on the references, such predictions were as good as chance."""
    known = [row._replace(tool="a linear SVM", tool_score=tool) for row in drawn(8)]
    found = expected_score(known[0].facts, known)
    assert found is not None
    assert found.tool == "a linear SVM"
    assert found.tool_score == pytest.approx(tool, abs=0.06)
    score, line = found.lines(known[0].facts.baseline, "validation")
    assert score.startswith("expected accuracy on the validation split after 5 minutes: ")
    assert line.startswith(f"expected from a linear SVM: about {format_score('accuracy', found.tool_score)}; compare")
    [alone] = found._replace(tool=None, tool_score=None).lines(None, "test")
    assert "on the test split" in alone


def test_without_references_of_the_recipe_nothing_is_expected() -> None:
    facts = reference(0, 0.6, 0.7).facts
    assert expected_score(facts._replace(recipe="vision"), drawn(4)) is None
    assert expected_score(facts, []) is None
    assert expected_score(facts._replace(baseline=None), drawn(4)) is None


def test_errors_and_returns_have_their_own_scales() -> None:
    text = Facts("text", 5.0, 2000, Baseline("a trigram model", "bits_per_byte", 2.5))
    play = Facts("trajectories", 5.0, 50, Baseline("the recorded episodes", "return_mean", -200.0))
    known = [
        Reference("a", "a", "bits_per_byte", text, 2.0),
        Reference("b", "b", "return_mean", play, -150.0),
    ]
    losses, returns = (expected_score(facts, known) for facts in (text, play))
    assert losses is not None
    assert returns is not None
    assert 0 < losses.low < losses.score < 2.5
    assert returns.low < returns.score < returns.high
    assert returns.score > -200
    limited = expected_score(
        play._replace(baseline=Baseline("the recorded episodes", "return_mean", -200.0, -160.0)), known
    )
    assert limited is not None
    assert limited.low < limited.score == limited.high == -160


def test_the_shipped_references_predict_their_own_sets() -> None:
    for row in references():
        found = expected_score(row.facts, references())
        assert found is not None
        assert found.metric == row.metric
        assert all(map(math.isfinite, (found.low, found.score, found.high)))
        assert found.low <= found.score <= found.high


def test_the_report_compares_what_was_expected_with_what_was_reached() -> None:
    expected = ExpectedScore("accuracy", 5.0, 0.8, 0.85, 0.9).result()
    summary = {"expected": expected, "scores": {"split": "test", "accuracy": 0.87}}
    assert expected_sentence(summary) == (
        "Before training, the expected accuracy was 85.0 % (80.0 % to 90.0 %); the test score, 87.0 %, is inside this "
        "interval."
    )
    assert "outside" in expected_sentence({**summary, "scores": {"split": "test", "accuracy": 0.5}})
    few = {"split": "test", "accuracy": 0.5, "accuracy_interval": [0.2, 0.9]}
    assert expected_sentence({**summary, "scores": few}).endswith(
        "outside this interval, which its own 95 % interval overlaps."
    )
    nearly = {**summary, "expected": {**summary["expected"], "interval": [0.9, 0.9998]}}
    perfect = {"split": "test", "accuracy": 1.0, "accuracy_interval": [0.8, 1.0]}
    assert expected_sentence({**nearly, "scores": perfect}).endswith("100.0 %, is inside this interval.")
    assert expected_sentence({"scores": {"split": "test", "accuracy": 0.5}}) == ""
    assert format_score("bleu", 31.234) == "31.2"


def rows_of_texts(count: int = 300) -> list[dict[str, str]]:
    """Texts whose words belong to their label."""
    chance, words = random.Random(1), {"fruit": ("apple", "pear", "plum"), "tool": ("saw", "drill", "file")}
    labels = [chance.choice(sorted(words)) for _ in range(count)]
    return [
        {"text": " ".join(chance.choice(words[label]) for _ in range(6)) + f" {number}", "label": label}
        for number, label in enumerate(labels)
    ]


def written(name: str, text: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_text(text, encoding="utf-8")
        return str(folder / name)

    return write


SENTENCES = [f"the {animal} sees {number} birds" for animal in ("dog", "cat", "cow") for number in range(2, 60)]
TAGS = {"dog": "B-PET", "cat": "B-PET", "cow": "B-FARM"}
FILES = {
    "text": ("bits_per_byte", written("text.txt", "\n".join(SENTENCES))),
    "translation": ("bleu", written("pairs.tsv", "".join(f"{line}\t{line.upper()}\n" for line in SENTENCES))),
    "tagging": (
        "f1",
        written(
            "tags.conll",
            "\n".join("".join(f"{word} {TAGS.get(word, 'O')}\n" for word in line.split()) for line in SENTENCES),
        ),
    ),
    "forecast": (
        "mase",
        written("series.csv", "day,value\n" + "".join(f"{day},{10 + day % 7 + 0.1 * day}\n" for day in range(400))),
    ),
}


@pytest.mark.parametrize("recipe", sorted(FILES))
def test_each_domain_scores_a_quick_classical_method(recipe: str, tmp_path: Path) -> None:
    metric, write = FILES[recipe]
    user = {"task.context": 32, "train.batch_tokens": 512} if recipe == "text" else {}
    task = open_task(configure_recipe(recipe, write(tmp_path), user, None), tmp_path)
    found, again = (task.objective.baseline(task.examples, 200) for _ in range(2))
    assert found is not None
    assert found == again
    assert found.metric == metric
    assert found.score > {"bits_per_byte": 0, "mase": -1e-9, "bleu": 20, "f1": 0.9}[metric]
    assert metric != "bits_per_byte" or found.score < 4


@pytest.mark.usefixtures("brief_samples")
def test_plans_runs_and_reports_state_the_expected_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuple(row._replace(tool="a linear SVM", tool_score=0.999) for row in drawn(6))
    monkeypatch.setattr(choose, "references", lambda: known)
    # what several processes share goes through JSON
    monkeypatch.setattr(Processes, "broadcast_object", lambda self, data: json.loads(json.dumps(data)))
    [plan] = hw.plan("classification", rows_of_texts(), minutes=0.5, threads=1)
    lines = [reason for reason in plan.reasons if reason.startswith("expected accuracy on the test split")]
    assert len(lines) == 1
    assert "a linear model of n-grams has 100.0 % on the validation split" in lines[0]
    assert plan.expected is not None
    assert plan.expected.low <= plan.expected.score <= plan.expected.high
    [few] = hw.plan("classification", rows_of_texts(40), minutes=0.5, threads=1)  # 8 in validation, all correct
    assert few.expected is None
    user = {"model.width": 16, "model.depth": 1, "model.heads": 1, "train.batch_tokens": 256}
    options: Any = {"run": tmp_path / "run", "threads": 1, "progress": False}
    run = hw.train("classification", rows_of_texts(), user, 0.15, **options)
    assert any("after 0.15 minutes" in reason for reason in run.recipe.reasons)
    assert run.summary["expected"]["metric"] == "accuracy"
    assert "Before training, the expected accuracy was" in expected_sentence(run.summary)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Before training, the expected accuracy was" in page
    again = hw.train("classification", None, resume=True, **options)
    assert again.summary["expected"] == run.summary["expected"]
