"""`headway chess puzzles`: measure how many puzzles a model solves."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import add_weights, integer, load, number, torch_options
from headway.app.cli.terminal import Terminal, format_cell
from headway.domains.chess.limits import SEARCHES, SearchLimits

EXAMPLE = """
headway chess puzzles runs/chess lichess_puzzles.csv --search policy
headway chess puzzles runs/chess lichess_puzzles.csv --search puct --nodes 100 --limit 500 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="run of the chess recipe")
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE.csv",
        help="CSV file with the columns position and bestmove, or Lichess's columns",
    )
    add_limits(parser, "puzzles")
    add_search(parser)
    add_weights(parser)


def add_limits(parser: argparse.ArgumentParser, noun: str) -> None:
    """Add the options that limit the number of puzzles and the search per move."""
    parser.add_argument("--limit", type=integer(1), metavar="N", help=f"use only the first N {noun}")
    parser.add_argument("--nodes", type=integer(1), metavar="N", help="tree search nodes per move (default: 100)")
    parser.add_argument(
        "--movetime", type=number(0, above=True), metavar="S", help="seconds per move, instead of nodes"
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        help="search method: policy (none), value (one move ahead) or puct (tree search); default: strongest supported",
    )


def search_limits(args: argparse.Namespace) -> SearchLimits:
    return SearchLimits(args.nodes if args.movetime or args.nodes else 100, seconds=args.movetime)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.puzzles import solve

    with torch_options(args):
        player = load(args).player(args.search)
        progress = lambda count, solved: terminal.note(f"{solved:,} of {count:,} solved")  # noqa: E731
        scores = solve(player, args.file, search_limits(args), args.limit, progress)
    scores = {"search": player.search, **scores}
    for name, value in scores.items():
        terminal.print(f"{name}: {format_cell(value)}")
    terminal.print_result(scores)
