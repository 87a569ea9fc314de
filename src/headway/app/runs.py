"""Reading recipe files and the recipes of runs, whose task kinds are looked up in the domains."""

from headway.config import register_lazily
from headway.domains import tasks
from headway.learn import TaskConfig, open_recipe, read_recipe

__all__ = ["open_recipe", "read_recipe"]
register_lazily(TaskConfig, tasks)
