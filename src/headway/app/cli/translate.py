"""`headway translate`: a line in, a line out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from headway.app.cli.options import add_cache, add_server, load, number, torch_options, whole
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway translate runs/multi30k-en-de --beam 4 < source.en > target.de
echo "Two dogs play in the snow." | headway translate runs/multi30k-en-de --n-best 3
"""
CHUNK = 512  # lines read before any is written: enough to batch lines of equal length


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="RUN|MODEL", help="a run directory or a published model")
    add("--beam", type=whole(1), default=4, metavar="N", help="beams a line; 1 is greedy (default: 4)")
    add("--length-penalty", type=number(0), default=0.6, metavar="A", help="GNMT's alpha (default: 0.6)")
    add("--n-best", type=whole(1), default=1, metavar="N", help="N lines a line, best first (default: 1)")
    add_cache(parser)
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, count, outputs = time.monotonic(), 0, []
    with torch_options(args):
        model = load(args)
        for lines in chunks(sys.stdin):
            found = model.translate(lines, beam=args.beam, length_penalty=args.length_penalty, n_best=args.n_best)
            count += len(lines)
            for line in found:
                terminal.say("\n".join(line))
            if args.json:
                outputs.extend(found)
    if not count:
        raise UserError("there is no line to translate; give some on standard input: headway translate RUN < FILE")
    seconds = time.monotonic() - started
    terminal.result({"translations": outputs, "lines": count, "seconds": seconds, "beyond": model.beyond})


def chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    """Lines without their ends, a chunk at a time; from a keyboard, one at a time."""
    size = 1 if sys.stdin.isatty() else CHUNK
    while chunk := [line.rstrip("\r\n") for line in islice(lines, size)]:
        yield chunk
