"""`headway recipes`: list the built-in recipes and presets."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway recipes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    recipe_rows, presets = hw.recipes(), hw.presets()
    terminal.print("Recipes (headway train NAME):\n")
    terminal.print_table(
        [{k: v for k, v in row.items() if k not in ("description", "makes_data")} for row in recipe_rows]
    )
    terminal.print("\nPresets (headway show NAME):\n")
    terminal.print_table(presets)
    terminal.print_result({"recipes": recipe_rows, "presets": presets})
