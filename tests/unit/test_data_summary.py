"""What a plan reports about the data that it read."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.app.recipes import configure_recipe
from headway.learn.recipe import open_task
from headway.learn.task import DataSummary


def summary(recipe: str, path: Path, tmp_path: Path) -> DataSummary:
    task = open_task(configure_recipe(recipe, path, {}, None), tmp_path / "workspace")
    try:
        return DataSummary.of(task, 7)
    finally:
        task.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path


def test_classes_with_counts_and_samples(workspace: Path) -> None:
    path = workspace / "a.csv"
    rows = [f"text {number},{'good' if number % 3 else 'bad'}" for number in range(30)]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    found = summary("classification", path, workspace)
    assert found.classes == {"bad": 10, "good": 20}
    assert sum(found.samples.values()) == 30
    assert found.targets == 7
    assert len(found.preview) == 5
    assert found.preview[0] == "text 0 → bad"


def test_pairs_and_texts(workspace: Path) -> None:
    path = workspace / "a.tsv"
    path.write_text("source\ttarget\n" + "".join(f"number {n}\t{n}\n" for n in range(40)), encoding="utf-8")
    found = summary("translation", path, workspace)
    assert found.noun == "pairs"
    assert sum(found.samples.values()) == 40
    for line in found.preview:
        source, target = line.split(" → ")
        assert source == f"number {target}"


def test_a_text_begins_as_in_its_file(workspace: Path) -> None:
    path = workspace / "a.txt"
    path.write_text("Once upon a time there was a fox.\n" * 200, encoding="utf-8")
    found = summary("text", path, workspace)
    assert found.preview[0].startswith("Once upon a time there was a fox.")
    assert found.classes == {}
