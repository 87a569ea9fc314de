"""What is predicted: classes, numbers and several labels at once, in texts, pairs, images and sounds."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from understanding_data import opened, small

import headway as hw
from headway.app.cli.main import main
from headway.data import read_table
from headway.data.labels import infer_target, missing_mask
from headway.domains.understanding.recipes import classification, pairs
from headway.errors import ConfigError, UserError
from headway.formats.usage import read_usage
from headway.layout import Layout
from headway.learn.objectives.classes import Classification
from headway.learn.objectives.predictions import MultiLabel, Regression, interleave_classes
from headway.learn.objectives.targets import class_weights, rare_classes
from headway.metrics import balanced_scores
from headway.nn.models import PooledHeadConfig, build

WORDS = {"good": 3, "bad": -3, "fine": 1, "awful": -5, "great": 5, "poor": -2, "nice": 2, "ugly": -4}
TOPICS = {"sport": ["goal", "team"], "money": ["bank", "cash"], "food": ["soup", "bread"]}
SETTINGS = {
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "task.size": 300,
    "task.split.validation": 0.2,
    "task.split.test": 0.2,
    "train.steps": 60,
    "train.batch_tokens": 512,
    "train.precision": "fp32",
}


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rated(place: Path, count: int = 150) -> Path:
    """Words with a number that is their sum, far from 0."""
    rng = random.Random(3)
    texts = [rng.choices(list(WORDS), k=rng.randint(2, 6)) for _ in range(count)]
    rows = [(" ".join(words), 1000 + 40.5 * sum(WORDS[word] for word in words)) for words in texts]
    return write_csv(place / "rated.csv", ["text", "label"], rows)


def topical(count: int = 200) -> list[tuple[str, list[str]]]:
    """Words of some of three topics, with these topics; some texts have none."""
    rng = random.Random(5)
    found = []
    for number in range(count):
        topics = [topic for topic in TOPICS if rng.random() < 0.4]
        words = [rng.choice(TOPICS[topic]) for topic in topics] + ["the", "of", str(number)]
        rng.shuffle(words)
        found.append((" ".join(words), topics))
    return found


def train(data: Path, run: Path, recipe: str = "classification", **settings: Any) -> Any:
    return hw.train(recipe, data=data, set={**SETTINGS, **settings}, run=run, progress=False, samples=6)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["spam", "ham"], "class"),
        (["0", "1", "1.0"], "class"),
        ([str(number) for number in range(242)], "class"),
        ([str(number) for number in range(1, 40)], "class"),
        (["1", "2.5", "3"], "number"),
        ([str(7 * number) for number in range(40)], "number"),
        (["a;b", "b", "a", "b;c", "c"], "labels"),
        (["Action|Drama", "Drama|Comedy", "Comedy|Action"], "labels"),
        (['["a", "b"]', "[]", '["b"]'], "labels"),
        (["Tom; Jerry", "Bonnie; Clyde"], "class"),
        (["true", "false"], "class"),
    ],
)
def test_labels_say_what_they_are(labels: list[str], kind: str) -> None:
    assert infer_target(labels).kind == kind
    assert infer_target(labels, "class").kind == "class"


def test_a_name_among_numbers_is_a_mistake() -> None:
    with pytest.raises(UserError, match="2 of 3 distinct labels are numbers, but 'seven' is not"):
        infer_target(["1.5", "seven", "2.5"])
    assert infer_target(["1.5", "seven", "2.5"], "class").kind == "class"


def test_every_number_of_pairs_is_one() -> None:
    assert infer_target(["0", "1"], every_number=True).kind == "number"
    assert infer_target(["0", "one"], every_number=True).kind == "class"


def test_missing_labels_are_empty_or_words_for_no_number() -> None:
    assert missing_mask(["a", "", "nan"]).tolist() == [False, True, False]
    assert missing_mask(["1.5", "", "NaN", "n/a"]).tolist() == [False, True, True, True]
    assert missing_mask(["1.5", "", "NaN"], "class").tolist() == [False, True, False]


def test_lists_and_columns_of_zero_and_one_are_read_alike(tmp_path: Path) -> None:
    rows = topical(30)
    names = {"text": "text", "label": "label"}
    flags = [(text, *(int(topic in topics) for topic in TOPICS), number) for number, (text, topics) in enumerate(rows)]
    table = write_csv(tmp_path / "flags.csv", ["text", *TOPICS, "id"], flags)
    listed = tmp_path / "lists.jsonl"
    listed.write_text("".join(json.dumps({"text": text, "label": topics}) + "\n" for text, topics in rows))
    found = [read_table([path], names, target="label").columns["label"] for path in (table, listed)]
    assert found[0] == found[1] == [json.dumps(topics) for _, topics in rows]
    some = read_table([table], {"text": "text", "label": "sport, food"}, target="label").columns["label"]
    assert some == [json.dumps([topic for topic in topics if topic != "money"]) for _, topics in rows]
    table.write_text(table.read_text().replace(",0,", ",2,", 1))
    with pytest.raises(UserError, match=r"line \d+: '\w+' is '2'; write 0 or 1"):
        read_table([table], {"text": "text", "label": "sport,money,food"}, target="label")
    with pytest.raises(UserError, match="has no column 'label'"):
        read_table([table], names)
    with pytest.raises(UserError, match=r"has no column 'sports' .did you mean 'sport'.*correct task.label"):
        read_table([table], {"text": "text", "label": "money,sports"}, target="label")
    with pytest.raises(UserError, match="has no column 'topic'"):
        read_table([table], {"text": "text", "label": "topic"}, target="label")


def test_a_missing_label_is_an_error_or_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rated(tmp_path)
    rows = list(csv.reader(path.read_text().splitlines()))
    rows[3][1], rows[9][1] = "", "NaN"
    write_csv(path, rows[0], rows[1:])
    with pytest.raises(UserError, match=r"line 4: the label is empty \(2 labels are missing\); .*task.skip_bad=true"):
        opened(small(classification()), path)
    task = opened(small(classification(), **{"task.skip_bad": True}), path)
    assert len(task.examples.targets) == 148
    assert task.examples.remarks == ("2 of 150 texts have no label and are skipped.",)
    assert caplog.text.count("2 of 150 texts have no label") == 1
    write_csv(path, rows[0], [[text, ""] for text, _ in rows[1:]])
    with pytest.raises(UserError, match="no text has a label"):
        opened(small(classification(), **{"task.skip_bad": True}), path)


def test_rare_classes_are_weighed_and_said(tmp_path: Path) -> None:
    rows = [(f"all is well {number}", "ok") for number in range(190)] + [(f"fire {n}", "alarm") for n in range(10)]
    path = write_csv(tmp_path / "rare.csv", ["text", "label"], rows)
    task = opened(small(classification()), path)
    counts = np.bincount(task.examples.targets[task.examples.splits.indices["train"]])
    assert task.chosen_settings == {"target": "class", "balance": 0.5, "goal": "f1"}
    assert f"'alarm' ({counts[0]})" in task.reasons[1]
    assert f"always predicting 'ok' has an accuracy of {counts[1] / counts.sum():.1%}" in task.reasons[1]
    weights = task.objective.weights
    assert float(weights[0] / weights[1]) == pytest.approx((counts[1] / counts[0]) ** 0.5)
    assert float((weights * torch.from_numpy(counts)).sum()) == pytest.approx(counts.sum())
    scores = task.evaluate(build(task.adapt(small(classification()).model)))
    assert next(iter(scores)) == "rare_f1"
    assert list(scores).index("balanced_accuracy") < list(scores).index("accuracy") < list(scores).index("loss")
    plain = opened(small(classification(), **{"task.balance": False, "task.goal": "balanced_accuracy"}), path)
    assert plain.objective.weights is None
    assert plain.goal == "balanced_accuracy"
    assert "no class weights in the loss" in plain.reasons[1]
    even = opened(small(classification()), write_csv(tmp_path / "even.csv", ["text", "label"], rows[-20:]))
    assert even.chosen_settings == {"target": "class", "balance": 0.0, "goal": "accuracy"}
    assert next(iter(even.evaluate(build(even.adapt(small(classification()).model))))) == "loss"


def test_a_run_keeps_its_rare_classes_on_other_data(tmp_path: Path) -> None:
    rows = [(f"all is well {number}", "ok") for number in range(190)] + [(f"fire {n}", "alarm") for n in range(10)]
    run = train(write_csv(tmp_path / "rare.csv", ["text", "label"], rows), tmp_path / "run", **{"train.steps": 2})
    other = [(f"well {n}", "ok") for n in range(30)] + [(f"big fire {n}", "alarm") for n in range(20)]
    scores = hw.load(run.directory).evaluate(write_csv(tmp_path / "other.csv", ["text", "label"], other), split="all")
    assert list(scores)[1] == "rare_f1"
    calm = write_csv(tmp_path / "calm.csv", ["text", "label"], other[:30])
    scores = hw.load(run.directory).evaluate(calm, split="all")
    assert "rare_f1" not in scores
    assert scores["samples"] == 30


def test_weights_and_rarity() -> None:
    assert rare_classes(np.array([1000, 20])) == (1,)
    assert rare_classes(np.array([100, 40, 11])) == ()
    torch.testing.assert_close(class_weights(np.array([30, 10]), 1.0), torch.tensor([2 / 3, 2.0]))
    torch.testing.assert_close(class_weights(np.array([30, 10]), 0.0), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task.balance": 3}, "task.balance is 3; use auto, or a number from 0"),
        ({"task.balance": "weights"}, "task.balance is 'weights'"),
        ({"task.goal": "r2"}, "task.goal is 'r2', which is not a score for classes; use one of accuracy"),
        ({"task.goal": "rare_f1"}, "no class is rare; use f1"),
        ({"task.target": "number"}, "the label 'a' is not a number; correct it, or set task.target=class"),
        ({"task.label": []}, "task.label is"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    path = write_csv(tmp_path / "a.csv", ["text", "label"], [(f"{n} x", "ab"[n % 2]) for n in range(40)])
    with pytest.raises((UserError, ConfigError), match=words.replace("(", r"\(")):
        opened(small(classification(), **settings), path)


def test_errors_come_first_one_per_class() -> None:
    wrong = np.array([False, True, True, False, True, False])
    classes = np.array([0, 0, 0, 1, 1, 2])
    assert interleave_classes(wrong, classes).tolist() == [4, 1, 2, 5, 3, 0]


def test_a_number_is_learned_in_its_own_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(rated(tmp_path), tmp_path / "run")
    head = run.recipe.model.heads["number"]
    assert head.scale > 100
    assert 800 < head.shift < 1200
    assert run.recipe.task.target == "number"
    assert any("which is not" in reason or "numbers" in reason for reason in run.recipe.reasons)
    scores = run.summary["scores"]
    assert scores["r2"] > 0.5
    assert scores["mean_absolute_error"] < 0.7 * head.scale
    assert scores.keys() >= {"r2_interval", "pearson", "spearman"}
    assert run.summary["samples"][0].keys() == {"source", "output", "reference"}
    errors = [abs(float(each["output"]) - float(each["reference"])) for each in run.summary["samples"]]
    assert errors == sorted(errors, reverse=True)
    model = hw.load(run.directory)
    assert model.usage.problem == "regression"
    low, high = (model.classify(text)["value"] for text in ("awful awful awful", "great great great"))
    assert low < 900 < 1100 < high
    assert main(["classify", str(run.directory), "great", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("item,value\ngreat,")
    again = model.evaluate()
    assert again["r2"] == pytest.approx(scores["r2"])


def test_numbers_far_from_zero_are_exact_in_bf16() -> None:
    head = PooledHeadConfig(1, "mean", scale=0.5, shift=1000.0).build(8, 1, None)
    for parameter in head.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    x, layout = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)), Layout.full(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x, layout)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head(x, layout), rtol=0, atol=0.02)


def test_several_labels_are_learned_with_a_threshold_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(text, ";".join(topics) or "[]") for text, topics in topical()]
    path = write_csv(tmp_path / "topics.csv", ["text", "label"], rows)
    run = train(path, tmp_path / "run", **{"train.steps": 100})
    usage = read_usage(run.directory)
    assert usage.problem == "multi_label_classification"
    assert usage.labels == ("food", "money", "sport")
    assert len(usage.thresholds) == 3
    scores = run.summary["scores"]
    assert scores["f1_micro"] > 0.9
    model = hw.load(run.directory)
    assert model.evaluate()["f1_micro"] == pytest.approx(scores["f1_micro"])
    assert list(model.thresholds) == ["food", "money", "sport"]
    assert main(["classify", "--json", str(run.directory), "the goal of soup"]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    assert sorted(row["predicted"]) == ["food", "sport"]
    assert main(["classify", str(run.directory), "the of", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "item,label,probability,predicted"
    assert all(line.endswith(",no") for line in lines[1:])
    sample = run.summary["samples"][0]
    assert sample.keys() >= {"source", "output", "reference"}


def test_ridge_regression_and_labels_fit_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(120, 6, generator=generator) + 3
    numbers = vectors @ torch.arange(6.0) + 100
    regression = Regression("text", "r2")
    fitted = regression.fit_linear_head((vectors[:80], numbers[:80]), (vectors[80:], numbers[80:]), 1)
    torch.testing.assert_close(fitted(vectors[80:])[:, 0], numbers[80:], rtol=1e-2, atol=0.1)
    labels = (vectors[:, :2] > 3).float()
    train, validation = (vectors[:80], labels[:80]), (vectors[80:], labels[80:])
    linear = MultiLabel("text").fit_linear_head(train, validation, labels.shape[1])
    assert ((linear(vectors[80:]) > 0).float() == labels[80:]).float().mean() > 0.9


def test_pairs_have_several_labels_too(tmp_path: Path) -> None:
    rows = [(text, "a pair", ";".join(topics) or "[]") for text, topics in topical(60)]
    task = opened(small(pairs()), write_csv(tmp_path / "pairs.csv", ["text", "text2", "label"], rows))
    assert task.chosen_settings["target"] == "labels"
    assert task.adapt(small(pairs()).model).heads["classes"].outputs == 3


def test_a_run_that_starts_from_numbers_predicts_the_same_ones(tmp_path: Path) -> None:
    first = train(rated(tmp_path), tmp_path / "first", **{"train.steps": 10})
    words = [word for word in WORDS for _ in range(8)]
    rows = [(f"{word} {number}", 5 * WORDS[word] + number) for number, word in enumerate(words)]
    other = write_csv(tmp_path / "other.csv", ["text", "label"], rows)
    settings = {"task.target": "number", "optim.lr": 1e-9, "train.steps": 1, "train.batch_tokens": 512}
    start, place = first.directory, tmp_path / "more"
    more = hw.train("classification", other, settings, start=start, run=place, progress=False)
    assert more.recipe.model.heads["number"].shift < 100
    texts = ["good fine", "awful"]
    before, after = ([each["value"] for each in hw.load(run).classify(texts)] for run in (start, place))
    assert after == pytest.approx(before, rel=1e-3)


def test_smoothing_does_not_spread_the_weights_of_rare_classes() -> None:
    """A sample of a common class keeps its target, whatever rare classes weigh."""
    logits, weights = torch.tensor([[2.0, -1.0], [0.5, 0.1]]), torch.tensor([0.5, 5.0])
    weighed, plain = Classification("text", 0.1, weights), Classification("text", 0.1)
    targets = torch.tensor([0, 1])
    each = [plain.entropy(logits[row : row + 1], targets[row : row + 1], 0.1) for row in range(2)]
    torch.testing.assert_close(weighed.entropy(logits, targets, 0.1), 0.5 * each[0] + 5.0 * each[1])
    shares = torch.eye(2)[targets]
    torch.testing.assert_close(weighed.entropy(logits, shares, 0.1), 0.5 * each[0] + 5.0 * each[1])


def test_a_part_without_rare_samples_says_nothing_of_them() -> None:
    right, said = [0, 0, 0, 0], [0, 0, 0, 1]
    scores = balanced_scores(said, right, rare=(1,))
    assert "rare_f1" not in scores
    assert next(iter(scores)) == "f1"
    scores = balanced_scores([0, 1, 1, 0], [0, 0, 1, 1], rare=(1,))
    assert scores["rare_f1"] == pytest.approx(0.5)
    assert scores["balanced_accuracy"] == pytest.approx(0.5)
    assert list(scores)[:2] == ["rare_f1", "rare_f1_interval"]
