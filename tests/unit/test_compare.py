"""Variants side by side: their sizes, where tasks know their model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headway.compare as module
from headway.compare import Comparison, compare
from headway.domains import recipe as find_recipe
from headway.domains.image_text.caption_recipes import captioner
from headway.errors import UserError
from headway.models import describe
from headway.recipes import configured
from headway.train import read_recipe

SCENES = {
    "train.steps": 1,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "task.beam": 1,
    "task.longest": 8,
    "task.drop_long": True,
    "task.train": 40,
    "task.validation": 8,
    "task.test": 8,
}


def test_a_captioner_is_sized_by_its_own_depth(tmp_path: Path) -> None:
    """Its task gives the model that it was opened with, whichever it is asked to adapt. Its widths fit its stem."""
    recipe = replace(find_recipe("scenes"), model=captioner(32, (1, 1), 2, 64, 16, 24))
    found = compare(configured(recipe, None, SCENES, None), {"model.depth": [1, 2]}, directory=tmp_path, device="cpu")
    _check_sizes(found)


def test_a_vision_transformer_is_sized_by_its_own_images(tmp_path: Path) -> None:
    """Its task keeps the embed of the model that it was opened with."""
    vision_data = pytest.importorskip("vision_data", reason="pillow is not installed")
    images, recipe = tmp_path / "images", vision_data.tiny(**{"train.steps": 1, "model.depth": 1})
    images.mkdir()
    grid = {"model.embed.size": [[16, 16], [48, 48]]}
    _check_sizes(compare(recipe, grid, vision_data.colours(images), directory=tmp_path / "c", device="cpu"))


def _check_sizes(found: Comparison) -> None:
    """What is told of two variants is what was trained, and the second was made as large as the first."""
    sizes = [result.variant.parameters for result in found.results]
    assert sizes == [describe(read_recipe(place / "recipe.json").model)["parameters"] for place in _places(found)]
    assert found.results[1].variant.width is not None
    assert sizes[1] == pytest.approx(sizes[0], rel=0.13)


def _places(found: Comparison) -> list[Path]:
    return [trial.directory for result in found.results for trial in result.trials]


def test_simulators_that_only_a_size_needed_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot_data = pytest.importorskip("robot_data", reason="gymnasium is not installed")
    robot_data.given(monkeypatch, robot_data.made())
    made, closed = [], []
    monkeypatch.setattr(robot_data.Reach, "__init__", lambda self, render_mode=None: made.append(self))
    monkeypatch.setattr(robot_data.Reach, "close", lambda self: closed.append(self))

    def stop(*given: Any, **named: Any) -> None:
        raise UserError("sizes are known")

    monkeypatch.setattr(module, "train", stop)
    grid = {"model.chunk": [5, 4, 3]}
    with pytest.raises(UserError, match="sizes are known"):
        compare(robot_data.tiny(), grid, str(tmp_path / "any.npz"), directory=tmp_path / "c", device="cpu")
    first = len(made) // 3
    assert first > 0
    assert closed == made[first:]
