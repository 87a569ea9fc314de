"""Held-out parts are spread over classes, and an evaluation of few samples decides little by chance."""

from __future__ import annotations

import numpy as np
import pytest

from headway.data.splits import ClassSplitConfig, SplitConfig, split_by_text
from headway.learn.report.pictures import confusions
from headway.learn.run import Progress

CONFIG = ClassSplitConfig(validation=0.1, test=0.1, stratify=True)
NAMELESS = np.zeros(200, np.uint8)
TEXTS = [f"text {number}" for number in range(200)]


def held_out(labels: list[str], config: SplitConfig = CONFIG, texts: list[str] = TEXTS) -> dict[str, list[int]]:
    """The samples of each class in each split."""
    sides = split_by_text(texts, NAMELESS[: len(texts)], config, labels)
    names = sorted(set(labels))
    return {side: [sum(labels[row] == name for row in rows) for name in names] for side, rows in sides.items()}


def test_every_class_has_nearly_the_same_share_in_each_split() -> None:
    labels = [f"{number // 10:02}" for number in range(200)]  # twenty classes of ten
    counts = held_out(labels)
    assert set(counts["train"]) <= {8, 9}
    assert max(*counts["validation"], *counts["test"]) <= 2
    assert sum(counts["validation"]) == sum(counts["test"]) == 18
    drawn = held_out(labels, SplitConfig(validation=0.1, test=0.1))
    assert min(drawn["train"]) < 7  # as drawn at random, some classes lose much more


def test_no_class_is_held_out_whole() -> None:
    labels = ["common"] * 190 + [f"rare {number}" for number in range(10)]
    assert min(held_out(labels)["train"]) == 1


def test_equal_samples_stay_together_and_another_seed_draws_others() -> None:
    texts = [f"text {number % 100}" for number in range(200)]
    labels = [str(number % 100 // 50) for number in range(200)]
    sides = split_by_text(texts, NAMELESS, CONFIG, labels)
    parts = [{texts[row] for row in rows} for rows in sides.values()]
    assert sum(map(len, parts)) == 100
    assert len(set.union(*parts)) == 100
    other = split_by_text(texts, NAMELESS, ClassSplitConfig(validation=0.1, test=0.1, stratify=True, seed=1), labels)
    assert other["test"].tolist() != sides["test"].tolist()


def test_files_that_name_a_split_keep_it() -> None:
    named = np.array([0] * 150 + [3] * 50, np.uint8)
    sides = split_by_text(TEXTS, named, CONFIG, [str(number % 5) for number in range(200)])
    assert sides["test"].tolist() == list(range(150, 200))
    assert len(sides["validation"]) == 15


@pytest.mark.parametrize(
    ("samples", "evaluations", "kept"),
    [
        (50, [(0.60, 1.2), (0.66, 1.9), (0.60, 1.1)], 2),  # three samples more are chance: the smaller loss wins
        (50, [(0.60, 1.2), (0.70, 1.9)], 1),  # five samples are not
        (50, [(0.70, 1.2), (0.60, 0.9)], 0),
        (5000, [(0.60, 1.2), (0.62, 1.9), (0.60, 1.1)], 1),  # of many samples a hundred more are no chance
        (50, [(0.90, 0.42), (0.90, 0.026)], 1),
        (50, [(float("nan"), 0.4), (0.5, 2.0)], 1),
    ],
)
def test_the_best_model_is_not_a_lucky_one(samples: int, evaluations: list[tuple[float, float]], kept: int) -> None:
    progress = Progress()
    for step, (accuracy, loss) in enumerate(evaluations):
        progress.step = step
        progress.record({"accuracy": accuracy, "loss": loss, "samples": samples}, "accuracy", "max")
    assert progress.best is not None
    assert progress.best["step"] == kept


def test_a_class_without_samples_is_not_the_worst() -> None:
    right, said = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 0])
    table = str(confusions(right, said, ("often", "twice", "never"), "test texts")[-1].figure)
    assert max(table.index("twice"), table.index("often")) < table.index("never")
