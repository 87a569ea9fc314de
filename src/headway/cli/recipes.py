"""`headway recipes`: what can be trained by name."""

from __future__ import annotations

import argparse

from headway.cli.terminal import Terminal

EXAMPLE = "headway recipes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains import recipes
    from headway.models import describe
    from headway.models.presets import PRESETS

    found = [
        {
            "name": recipe.name,
            "domain": recipe.domain,
            "parameters": describe(recipe.model)["parameters"],
            "data": ", ".join(recipe.data) or ("makes its own" if recipe.task.makes_data else "yours (--data)"),
            "makes_data": recipe.task.makes_data,
            "expected": recipe.expected,
            "description": recipe.description,
        }
        for recipe in recipes().values()
    ]
    presets = [{"name": name, "parameters": describe(make())["parameters"]} for name, make in PRESETS.items()]
    terminal.say("Recipes (headway train NAME):\n")
    terminal.table([{k: v for k, v in row.items() if k not in ("description", "makes_data")} for row in found])
    terminal.say("\nPresets (headway show NAME):\n")
    terminal.table(presets)
    terminal.result({"recipes": found, "presets": presets})
