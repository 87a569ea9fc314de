"""`headway chess move`: play a move in a game."""

from __future__ import annotations

import argparse

from headway.app.cli.options import add_server, add_verb, add_weights, integer, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway chess move runs/chess e4 e5                                 # the model's second move as White
headway chess move runs/chess --position "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1" --nodes 200
headway chess move chess e4 --server http://127.0.0.1:8000 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="run of the chess recipe")
    parser.add_argument("moves", nargs="*", metavar="MOVE", help="moves played so far, such as e2e4 or Nf3")
    add_verb(parser, "move", omit=["moves"], types={"nodes": integer(0)})
    add_server(parser)
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        played = load(args).move(**verb_options(args, "move"))
    terminal.print(f"{played.san} ({played.uci})\n")
    terminal.print_table(
        [{"move": candidate.san, "probability": candidate.probability} for candidate in played.candidates]
    )
    if played.outcome is not None:
        win, draw, loss = (f"{100 * share:.1f} %" for share in played.outcome)
        terminal.print(f"\nwin {win}, draw {draw}, loss {loss}")
    game = played.game
    terminal.print(f"\nposition: {game.position}" + (f"\n{game.end}: {game.result}" if game.end else ""))
    terminal.print_result(
        {**played._asdict(), "candidates": [c._asdict() for c in played.candidates], "game": game._asdict()}
    )
