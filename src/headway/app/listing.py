"""What can be trained by name, as tables: recipes and presets."""

from __future__ import annotations

from typing import Any

from headway import domains
from headway.nn.models import describe
from headway.nn.models.presets import PRESETS


def recipes() -> list[dict[str, Any]]:
    """The recipes, a row (dict) each: name, domain, parameters, data, time and score to expect, description."""
    return [
        {
            "name": recipe.name,
            "domain": recipe.domain,
            "parameters": describe(recipe.model)["parameters"],
            "data": ", ".join(recipe.data) or ("makes its own" if recipe.task.makes_data else "yours (--data)"),
            "makes_data": recipe.task.makes_data,
            "expected": recipe.expected,
            "description": recipe.description,
        }
        for recipe in domains.recipes().values()
    ]


def presets() -> list[dict[str, Any]]:
    """The presets of model architectures, a row (dict) each: name and number of parameters."""
    return [{"name": name, "parameters": describe(make())["parameters"]} for name, make in PRESETS.items()]
