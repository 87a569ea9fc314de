"""`headway plan`: estimate a training run on the user's data without training."""

from __future__ import annotations

import argparse

from headway.app.cli.options import add_fine_tuning, add_recipe, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.config import parse_settings

EXAMPLE = """
headway plan text --data my-books/ --minutes 5,30,120
headway plan classification --data questions.csv --minutes 2,10 --from path/to/all-MiniLM-L6-v2
headway plan translation --data train.en train.de --minutes 30 --set model.width=256
"""
_DEFAULT_MINUTES = [5.0, 30.0, 120.0]
_COLUMNS = ("minutes", "parameters", "width", "layers", "batch", "steps", "epochs")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name from `headway recipes`, or path of a recipe.json")
    add_recipe(parser, "settings to keep fixed")
    add_fine_tuning(parser)
    parser.add_argument(
        "--minutes",
        type=_minutes_list,
        default=_DEFAULT_MINUTES,
        metavar="M,M,...",
        help="minutes to plan for (default: 5,30,120)",
    )


def _minutes_list(text: str) -> list[float]:
    """Positive numbers separated by commas."""
    parse = number(0, above=True)
    return [parse(part) for part in text.split(",")]


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
    memory_texts = ["" if plan.memory is None else f"{plan.memory / 2**20:,.0f} MiB" for plan in plans]
    rows = ({name: getattr(plan, name) for name in _COLUMNS} for plan in plans)
    terminal.print_table([{**row, "memory": memory} for row, memory in zip(rows, memory_texts)])
    for plan in plans:
        terminal.print(f"\n{plan.minutes:g} minutes")
        for reason in plan.reasons:
            terminal.print(f"  {reason}")
    terminal.print_result({"plans": [plan._asdict() for plan in plans]})
