"""`headway board`: show the runs of a folder in the browser, while they train and afterwards."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from headway.app.cli.open import add_no_browser, open_page
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway board
headway board runs/ --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="folder of runs (default: runs)")
    add_no_browser(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.io.files import user_path

    folder = user_path(args.runs)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pass the folder of your runs, or train one first")
    if (folder / "run.json").exists():
        raise UserError(f"{folder} is a run; pass the folder that contains it: headway board {folder.parent}")
    if not args.json:
        open_page(args, terminal, folder, tab="runs")
        return
    from headway.app.run_board import RunBoard

    terminal.print_result({"runs": [asdict(row) for row in RunBoard(folder.absolute()).changes().runs]})
