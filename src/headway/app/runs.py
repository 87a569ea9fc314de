"""Recipes as files: a kind of task that one names is found in the domain that has it."""

from __future__ import annotations

from pathlib import Path

from headway.config import elsewhere
from headway.domains import tasks
from headway.learn import Recipe, TaskConfig, read_recipe
from headway.learn.run import open_recipe

__all__ = ["read_recipe", "recipe_of"]
elsewhere(TaskConfig, tasks)


def recipe_of(place: Path) -> Recipe:
    """The recipe of a run that has a model, whose domain is imported for it. UserError for one that has none yet."""
    return open_recipe(place)
