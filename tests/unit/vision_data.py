"""Images of three colours in a folder each, and tasks and recipes over them that take no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.vision.recipes import small_vit
from headway.domains.vision.task import ImageDataset
from headway.learn import Recipe

Image = pytest.importorskip("PIL.Image")

COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 50, 210)}
SETTINGS = {
    "train.steps": 6,
    "train.batch_size": 12,
    "train.keep_checkpoints": 9,
    "train.precision": "fp32",
    "task.split.validation": 0.2,
    "task.split.test": 0.2,
}


def tiny(**settings: Any) -> Recipe:
    model = small_vit(width=16, depth=2, heads=2, patch=4, size=16)
    return override(replace(find_recipe("vision"), model=model), {**SETTINGS, **settings})


def opened(data: Any, workspace: Path, **settings: Any) -> ImageDataset:
    recipe = tiny(**settings)
    task = recipe.task.open(recipe, [Path(path) for path in np.atleast_1d(data)], workspace)
    assert isinstance(task.examples, ImageDataset)
    return task.examples


def colours(place: Path) -> Path:
    """A folder for each of three colours, with images of several sizes and kinds."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / name).mkdir()
        for number in range(20):
            noise = rng.integers(-30, 31, (18 + number, 30 - number, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            kind = ("png", "bmp", "webp")[number % 3]
            Image.fromarray(pixels).save(place / name / f"{number}.{kind}")
    return place
