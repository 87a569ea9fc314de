"""`headway chess puzzles`: how many puzzles of a file a model solves."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.cli.options import add_weights, load, number, torch_options, whole
from headway.cli.terminal import Terminal, cell
from headway.domains.chess.limits import SEARCHES

EXAMPLE = """
headway chess puzzles runs/chess lichess_puzzles.csv --search policy
headway chess puzzles runs/chess lichess_puzzles.csv --search puct --nodes 100 --limit 500 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="a run of the recipe chess")
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="position and bestmove, or Lichess's own columns")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="the first N puzzles only")
    parser.add_argument("--nodes", type=whole(1), metavar="N", help="of a tree search a move (default: 100)")
    parser.add_argument("--movetime", type=number(0, above=True), metavar="S", help="seconds a move, in place of nodes")
    add_search(parser)
    add_weights(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        help="policy: one look; value: one move ahead; puct: a tree (default: the strongest that the model allows)",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.limits import Limits
    from headway.domains.chess.puzzles import solve

    limits = Limits(args.nodes if args.movetime or args.nodes else 100, seconds=args.movetime)
    with torch_options(args):
        player = load(args).player(args.search)
        said = lambda count, solved: terminal.note(f"{solved:,} of {count:,} solved")  # noqa: E731
        scores = solve(player, args.file, limits, args.limit, said)
    scores = {"search": player.search, **scores}
    for name, value in scores.items():
        terminal.say(f"{name}: {cell(value)}")
    terminal.result(scores)
