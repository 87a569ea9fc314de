"""`headway chess suite`: measure how many positions of a test suite a model solves, and list the others."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.chess_puzzles import add_limits, add_search, search_limits
from headway.app.cli.options import add_weights, load, torch_options
from headway.app.cli.terminal import Terminal, format_cell

EXAMPLE = """
headway chess suite runs/chess wac.epd --nodes 400
headway chess suite runs/chess wac.epd --movetime 2 --json
"""
_MAX_SHOWN = 20  # invalid lines to print


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="run of the chess recipe")
    parser.add_argument(
        "file", type=Path, metavar="FILE.epd", help="EPD file of positions with bm (best moves) or am (moves to avoid)"
    )
    add_limits(parser, "positions")
    add_search(parser)
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.puzzles import read_suite, solve_suite

    suite = read_suite(args.file, args.limit)
    for fault in suite.faults[:_MAX_SHOWN]:
        terminal.note(f"skipped: {fault}")
    if len(suite.faults) > _MAX_SHOWN:
        terminal.note(f"skipped {len(suite.faults) - _MAX_SHOWN:,} more lines")
    with torch_options(args):
        player = load(args).player(args.search)
        progress = lambda count, solved: terminal.note(f"{solved:,} of {count:,} solved")  # noqa: E731
        scores = {"search": player.search, **solve_suite(player, suite, search_limits(args), progress)}
    if scores["missed"]:
        terminal.print_table([{k: v for k, v in row.items() if k != "position"} for row in scores["missed"]])
        terminal.print()
    for name, value in scores.items():
        if name != "missed":
            terminal.print(f"{name}: {format_cell(value)}")
    terminal.print_result(scores)
