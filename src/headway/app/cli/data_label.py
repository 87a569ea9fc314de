"""`headway data label`: positions with the best moves and values that a chess engine finds."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import number, whole
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway data label positions.epd --engine stockfish --nodes 1000 --out labels.csv
headway data label games.pgn.xz --minutes 30 --vary 0.5 --out labels.csv --resume
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help=".pgn, .epd or .csv, also .gz, .xz, .zst or .zip of them")
    add("--out", type=Path, required=True, metavar="FILE.csv", help="where the labels go, line by line")
    add("--engine", default="stockfish", metavar="NAME", help="a UCI program or its path (default: stockfish)")
    add("--nodes", type=whole(1), default=1000, metavar="N", help="of search a position (default: 1000)")
    add("--lines", type=whole(1), default=8, metavar="N", help="best moves of a position (default: 8)")
    add("--workers", type=whole(1), metavar="N", help="programs at once (default: a core each)")
    add("--vary", type=number(0, 1), default=0.0, metavar="P", help="share of positions after 1 to 4 random moves")
    add("--limit", type=whole(1), metavar="N", help="the first N positions")
    add("--minutes", type=number(0, above=True), metavar="M", help="stop after this time")
    add("--resume", action="store_true", help="go on where FILE.csv ends")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.engines import LabelConfig, default_workers, label

    config = LabelConfig(
        args.engine, args.nodes, args.lines, args.workers or args.threads or default_workers(), args.vary,
        args.seed or 0, args.limit, args.minutes,
    )  # fmt: skip

    def progress(count: int, seconds: float) -> None:
        if count % 1000 == 0:
            terminal.note(f"{count:,} positions, {count / seconds:,.0f} a second")

    found = label(args.files, args.out, config, args.resume, progress)
    rate = found.new / max(1e-9, found.seconds)
    terminal.say(f"{found.positions:,} positions in {args.out}, {found.new:,} of them new, {rate:,.0f} a second")
    terminal.result({"file": args.out, **found._asdict(), "positions_per_second": rate})
