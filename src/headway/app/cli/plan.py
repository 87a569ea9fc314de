"""`headway plan`: estimate a training run on the user's data without training."""

from __future__ import annotations

import argparse

from headway.app.cli.options import add_recipe, add_start, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.config import parse_settings

EXAMPLE = """
headway plan text --data my-books/ --minutes 5,30,120
headway plan classification --data questions.csv --minutes 2,10 --from path/to/all-MiniLM-L6-v2
headway plan translation --data train.en train.de --minutes 30 --set model.width=256
"""
_USUAL = [5.0, 30.0, 120.0]
_SHOWN = ("minutes", "parameters", "width", "layers", "batch", "steps", "epochs")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name from `headway recipes`, or path of a recipe.json")
    add_recipe(parser, "settings to keep fixed")
    add_start(parser)
    parser.add_argument(
        "--minutes", type=_numbers, default=_USUAL, metavar="M,M,...", help="minutes to plan for (default: 5,30,120)"
    )


def _numbers(text: str) -> list[float]:
    """Positive numbers separated by commas."""
    read = number(0, above=True)
    return [read(part) for part in text.split(",")]


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        plans = hw.plan(
            args.recipe,
            data=args.data,
            minutes=args.minutes,
            set=parse_settings(args.set),
            start=args.start,
            lora=args.lora,
            device=args.device,
            threads=args.threads,
            seed=args.seed,
            spent=terminal.seconds(),
        )
    rooms = ["" if plan.memory is None else f"{plan.memory / 2**20:,.0f} MiB" for plan in plans]
    shown = ({name: getattr(plan, name) for name in _SHOWN} for plan in plans)
    terminal.table([{**row, "memory": room} for row, room in zip(shown, rooms)])
    for plan in plans:
        terminal.say(f"\n{plan.minutes:g} minutes")
        for reason in plan.reasons:
            terminal.say(f"  {reason}")
    terminal.result({"plans": [plan._asdict() for plan in plans]})
