"""`headway chess uci`: play over UCI, in a board of yours or a tournament."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.chess_puzzles import add_search
from headway.app.cli.options import add_weights, load, torch_options
from headway.app.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.domains.chess.player import Player

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
    from headway.errors import UserError

    if not args.model.is_dir():
        raise UserError(f"there is no run {args.model}; train one: headway train chess --data games.pgn")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 make a wrong command, not the end of a game
    with ExitStack() as options:

        def open_player() -> Player:
            options.enter_context(torch_options(args))
            return load(args).player(args.search)

        Uci(open_player, args.model.name, args.search, args.threads).run()
    terminal.result({"model": args.model})
