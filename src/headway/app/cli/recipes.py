"""`headway recipes`: what can be trained by name."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway recipes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    found, presets = hw.recipes(), hw.presets()
    terminal.say("Recipes (headway train NAME):\n")
    terminal.table([{k: v for k, v in row.items() if k not in ("description", "makes_data")} for row in found])
    terminal.say("\nPresets (headway show NAME):\n")
    terminal.table(presets)
    terminal.result({"recipes": found, "presets": presets})
