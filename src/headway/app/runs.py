"""Reading recipe files and the recipes of runs, whose task kinds are looked up in the domains."""

from headway.config_kinds import LAZY_KINDS
from headway.domains import tasks
from headway.learn import TaskConfig, open_recipe, read_recipe

__all__ = ["open_recipe", "read_recipe"]
LAZY_KINDS[TaskConfig] = tasks
