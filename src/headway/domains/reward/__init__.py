"""Learning from rewards that can be checked: the model answers prompts, and the better answers become more probable."""

from __future__ import annotations

__all__ = ["RECIPES", "TASKS"]
RECIPES = ("reward",)
TASKS = {"reward": "task"}
