"""Recipes by name, with the user's settings and data written into them, and the tasks that they open."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.config import override
from headway.data.registry import KNOWN
from headway.domains import recipe as find_recipe
from headway.domains import recipes
from headway.errors import UserError, nearest
from headway.models import ModelConfig
from headway.models.presets import PRESETS, preset
from headway.train import Recipe, Task, read_recipe
from headway.train.run import RunDirectory

Paths = str | Path | Sequence[str | Path]


def configured(
    recipe: str | Path | Recipe, data: Paths | None, settings: Mapping[str, Any] | None, seed: int | None
) -> Recipe:
    """The recipe with the user's settings, seed and data written into it, so that it repeats the run alone."""
    found = recipe if isinstance(recipe, Recipe) else _named(str(recipe))
    found = override(found, settings or {})
    if seed is not None:
        found = override(found, {"train.seed": seed})
    if data is not None:
        found = replace(found, data=tuple(_absolute(path) for path in _listed(data)))
    if not found.data and not isinstance(recipe, Recipe):
        raise UserError(f"recipe {found.name!r} has no data of its own; give yours with --data (data=...)")
    return found


def _named(name: str) -> Recipe:
    known = recipes()
    path = Path(name)
    return read_recipe(path) if path.suffix == ".json" and name not in known else find_recipe(name)


def _listed(data: Paths) -> list[str | Path]:
    return [data] if isinstance(data, (str, Path)) else list(data)


def _absolute(path: str | Path) -> str:
    """A path that holds from any directory; what is no path here (the name of a data set) stays as it is."""
    return os.path.abspath(path) if os.path.exists(path) or os.path.isabs(path) else str(path)


def open_task(recipe: Recipe, workspace: Path, data: Paths | None = None) -> Task:
    """The task of a configured recipe over `data`, or over the data that is named in it."""
    paths = [Path(path) for path in (recipe.data if data is None else _listed(data))]
    own = data is None and all(name in KNOWN for name in recipe.data)
    return recipe.task.open(recipe, None if own else paths, workspace)


def final_split(task: Task) -> str:
    """The split on which a finished model is judged; a task that does not say is judged by validation."""
    return getattr(task, "final_split", "validation")


def find_model(name: str) -> ModelConfig:
    """The model of a recipe, a preset, a recipe.json or a run directory."""
    if name in PRESETS:
        return preset(name)
    if name in recipes():
        return find_recipe(name).model
    path = Path(name)
    if path.suffix == ".json":
        return read_recipe(path).model
    if path.is_dir():
        place = RunDirectory(path)
        if not place.exists():
            raise UserError(f"{path} holds no run (no run.json); give the directory of a `headway train`")
        place.read_status()
        return read_recipe(place.recipe).model
    raise UserError(f"{name!r} is no recipe, preset or run directory; {nearest(name, [*recipes(), *PRESETS])}")
