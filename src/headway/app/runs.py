"""Reading recipe files, whose task kinds are looked up in the domains."""

from __future__ import annotations

from pathlib import Path

from headway.config import register_lazily
from headway.domains import tasks
from headway.learn import Recipe, TaskConfig, read_recipe
from headway.learn.run import open_recipe

__all__ = ["read_recipe", "recipe_of_run"]
register_lazily(TaskConfig, tasks)


def recipe_of_run(directory: Path) -> Recipe:
    """The recipe of a run that has a model; imports its domain. Raises UserError for a run without a model."""
    return open_recipe(directory)
