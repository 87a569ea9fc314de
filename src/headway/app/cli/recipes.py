"""`headway recipes`: list the built-in recipes and presets."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway recipes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    found, presets = hw.recipes(), hw.presets()
    terminal.say("Recipes (headway train NAME):\n")
    terminal.table([{k: v for k, v in row.items() if k not in ("description", "makes_data")} for row in found])
    terminal.say("\nPresets (headway show NAME):\n")
    terminal.table(presets)
    terminal.result({"recipes": found, "presets": presets})
