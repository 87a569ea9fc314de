"""`headway chess uci`: play over UCI, for a chess GUI or a tournament."""

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
    from headway.domains.chess.player import ChessPlayer

EXAMPLE = """
headway chess uci runs/chess                      # the engine command for a chess GUI
headway chess uci runs/chess --search policy      # without search
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="run of the chess recipe")
    add_search(parser)
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.uci import Uci
    from headway.errors import UserError

    if not args.model.is_dir():
        raise UserError(f"run {args.model} does not exist; train one: headway train chess --data games.pgn")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # invalid UTF-8 becomes an unknown command instead of ending the game
    with ExitStack() as options:

        def open_player() -> ChessPlayer:
            options.enter_context(torch_options(args))
            return load(args).player(args.search)

        Uci(open_player, args.model.name, args.search, args.threads).run()
    terminal.print_result({"model": args.model})
