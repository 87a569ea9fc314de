"""`headway data label`: label chess positions with an engine's best moves and values."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from headway.app.cli.options import integer, number
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway data label positions.epd --engine stockfish --nodes 1000 --out labels.csv
headway data label games.pgn.xz --minutes 30 --vary 0.5 --out labels.csv --resume
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="position files: .pgn, .epd or .csv, optionally compressed as .gz, .xz, .zst or .zip",
    )
    add("--out", type=Path, required=True, metavar="FILE.csv", help="output file for the labels")
    add("--engine", default="stockfish", metavar="NAME", help="name or path of a UCI engine (default: stockfish)")
    add("--nodes", type=integer(1), default=1000, metavar="N", help="search nodes per position (default: 1000)")
    add("--lines", type=integer(1), default=8, metavar="N", help="best moves per position (default: 8)")
    add("--workers", type=integer(1), metavar="N", help="parallel engine processes (default: one per core)")
    add(
        "--vary",
        type=number(0, 1),
        default=0.0,
        metavar="P",
        help="fraction of positions to change by 1 to 4 random moves (default: 0)",
    )
    add("--limit", type=integer(1), metavar="N", help="label only the first N positions")
    add("--minutes", type=number(0, above=True), metavar="M", help="stop after M minutes")
    add("--resume", action="store_true", help="continue after the last label in FILE.csv")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.engines import LabelConfig, label

    config = LabelConfig(
        args.engine, args.nodes, args.lines, args.workers or args.threads or os.cpu_count() or 1, args.vary,
        args.seed or 0, args.limit, args.minutes,
    )  # fmt: skip

    def progress(count: int, seconds: float) -> None:
        if count % 1000 == 0:
            terminal.note(f"{count:,} positions, {count / seconds:,.0f} per second")

    summary = label(args.files, args.out, config, args.resume, progress)
    rate = summary.new / max(1e-9, summary.seconds)
    terminal.print(
        f"{summary.positions:,} positions in {args.out}, {summary.new:,} of them new, {rate:,.0f} per second"
    )
    terminal.print_result({"file": args.out, **summary._asdict(), "positions_per_second": rate})
