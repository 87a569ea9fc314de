"""`headway chess uci`: play over UCI, in a board of yours or a tournament."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.cli.chess_puzzles import add_search
from headway.cli.options import add_weights, load, torch_options
from headway.cli.terminal import Terminal

EXAMPLE = """
headway chess uci runs/chess                      # what a chess GUI is to start, as an engine
headway chess uci runs/chess --search policy      # one look a move
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="a run of the recipe chess")
    add_search(parser)
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.uci import Uci

    with torch_options(args):
        Uci(load(args).player(args.search), args.model.name).run()
    terminal.result({"model": args.model})
