"""`headway show`: what a recipe, preset, run or model is made of."""

from __future__ import annotations

import argparse

from headway.cli.terminal import Terminal

EXAMPLE = """
headway show transformer-base
headway show runs/shakespeare --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME|RUN|MODEL", help="a recipe, a preset, a run directory or a published model"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.models import describe
    from headway.recipes import find_model

    facts = describe(find_model(args.name))
    terminal.say(args.name)
    for key, value in facts.items():
        if isinstance(value, int):
            terminal.say(f"  {key.replace('_', ' '):<24}{value:>20,}")
    terminal.say()
    terminal.say("\n".join(facts["tree"]))
    terminal.result({"name": args.name, **facts})
