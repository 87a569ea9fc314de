"""`headway board`: show the runs of a folder in the browser, while they train and afterwards."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from headway.app.cli.open import add_no_browser, open_page
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway board
headway board runs/ --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    help_text = "folder of runs (default: runs)"
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"), metavar="RUNS", help=help_text)
    add_no_browser(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    if not args.runs.is_dir():
        raise UserError(f"{args.runs} is not a folder; pass the folder of your runs, or train one first")
    if not args.json:
        open_page(args, terminal, args.runs, tab="runs")
        return
    from headway.app.run_board import RunBoard

    rows = RunBoard(args.runs.absolute()).changes().runs
    terminal.print_result({"runs": [asdict(row) for row in rows]})
