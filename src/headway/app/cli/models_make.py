"""`headway models make`: train a small model that headway knows how to make, or continue to."""

from __future__ import annotations

import argparse
import shlex

from headway.app.cli.options import number, torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway models make digits
headway models make stories --minutes 10
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name from `headway models`")
    parser.add_argument(
        "--minutes",
        type=number(0, above=True),
        metavar="M",
        help="train for M minutes; a finished model trains for M more (default: the minutes in `headway models`)",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.app.starters import make, starter
    from headway.learn import UserInterrupt, measure_of
    from headway.learn.run_report import scores

    chosen = starter(args.name)
    try:
        with torch_options(args):
            made = make(
                args.name, args.minutes, args.device, args.threads, args.seed, terminal.seconds(), note=terminal.note
            )
    except UserInterrupt as interrupt:
        options = ["--deterministic"] if args.deterministic else []
        command = shlex.join(["headway", "models", "make", args.name, *options])
        raise UserInterrupt(interrupt.where, f"continue with: {command}", interrupt.number) from interrupt
    description = chosen.description()
    if made is None:
        terminal.print(f"{args.name} is made already; --minutes trains it for longer")
    else:
        summary = made.summary
        terminal.print_table(scores(summary.get("scores", {}), summary.get("best") or {}, measure_of(made.task)))
    terminal.print(f"model: {chosen.directory}")
    terminal.print(f"next: {description['use']}")
    terminal.print_result({**description, "run": chosen.directory, "was_made": made is None})
