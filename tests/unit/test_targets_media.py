"""Numbers and several labels at once in images and sounds, which tables of paths name."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sound_files import tone, write
from vision_data import Image, colours, tiny

import headway as hw
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.audio.classification import SoundsConfig
from headway.errors import UserError


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one brightness each."""
    place = tmp_path_factory.mktemp("grey")
    for number in range(60):
        pixels = np.full((16, 16, 3), 4 * number, np.uint8)
        pixels[:2, :2] = number  # so that no two are equal
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


def test_the_brightness_of_images_is_learned(grey: Path, tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [(f"{number}.png", 500 + 2.5 * number) for number in range(60)]
    rows[7] = ("7.png", "")
    data = table(grey / "brightness.csv", ["path", "label"], rows)
    recipe = tiny(**{"train.steps": 60, "task.skip_bad": True})
    run = hw.train(recipe, data, run=tmp_path / "run", progress=False, samples=3)
    assert run.recipe.task.target == "number"  # type: ignore[attr-defined]
    assert run.summary["scores"]["r2"] > 0.5
    assert "1 of 60 images have no label and are skipped." in run.task.examples.remarks  # type: ignore[union-attr]
    found = hw.load(run.directory).classify([grey / "2.png", grey / "57.png"])
    assert found[0]["value"] < 560 < 590 < found[1]["value"]
    assert "Predicted numbers" in (run.directory / "report.html").read_text()


def test_images_have_several_labels(grey: Path, tmp_path: Path) -> None:
    rows = [(f"{n}.png", int(n > 20), int(n > 40)) for n in range(60)]
    data = table(grey / "several.csv", ["path", "light", "bright"], rows)
    run = hw.train(tiny(**{"train.steps": 60}), data, run=tmp_path / "run", progress=False, samples=3)
    model = hw.load(run.directory)
    assert list(model.thresholds) == ["bright", "light"]
    found = model.classify([grey / "5.png", grey / "59.png"])
    chosen = [{name for name, share in each.items() if share >= model.thresholds[name]} for each in found]
    assert chosen == [set(), {"light", "bright"}]
    report = (run.directory / "report.html").read_text()
    assert "threshold" in report


def test_folders_are_classes_even_with_numbers_as_names(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    place = colours(tmp_path / "images")
    for number, folder in enumerate(sorted(place.iterdir())):
        folder.rename(place / f"{number}.5")
    recipe = tiny()
    task = recipe.task.open(recipe, [place], tmp_path)
    assert task.chosen_settings["target"] == "class"
    assert task.reasons[0].startswith("predicts one of 3 classes for each image, because the folders are named")
    taught = tiny(**{"task.target": "number", "task.teacher": "x"})
    with pytest.raises(UserError, match=r"task\.teacher"):
        taught.task.open(taught, [place], tmp_path)


def sounds(folder: Path, count: int = 40) -> list[int]:
    pitches = [200 + 20 * number for number in range(count)]
    for number, pitch in enumerate(pitches):
        write(folder / f"{number}.wav", tone(pitch, 0.2, number))
    return pitches


def small_sounds(**settings: Any) -> Any:
    chosen = {"model.width": 32, "model.depth": 1, "model.heads": 2, "train.steps": 60, "train.batch_size": 16}
    return override(find_recipe("audio"), {**chosen, "task.split.validation": 0.2, "task.split.test": 0.2, **settings})


def test_sounds_have_numbers_and_several_labels(tmp_path: Path) -> None:
    pitches = sounds(tmp_path)
    rows = [(f"{number}.wav", pitch / 1000) for number, pitch in enumerate(pitches)]
    recipe = small_sounds()
    assert isinstance(recipe.task, SoundsConfig)
    task = recipe.task.open(recipe, [table(tmp_path / "pitch.csv", ["path", "label"], rows)], tmp_path / "none")
    assert task.chosen_settings == {"target": "number", "balance": 0.0, "goal": "r2"}
    model = task.adapt(recipe.model).build()
    assert task.evaluate(model)["mean_absolute_error"] > 0
    assert [each.title for each in task.pictures(model)] == ["Predicted numbers", *["Model input"] * 2]
    named = [(name, "low;tone" if value < 0.6 else "tone") for name, value in rows]
    task = recipe.task.open(recipe, [table(tmp_path / "named.csv", ["path", "label"], named)], tmp_path / "none")
    assert task.chosen_settings["target"] == "labels"
    assert task.examples.labels == ("low", "tone")  # type: ignore[attr-defined]
    assert task.evaluate(task.adapt(recipe.model).build()).keys() >= {"f1_micro", "exact_match"}
