"""`headway embed`: embed lines as vectors, one JSON list per line; null for an empty line or a damaged file."""

from __future__ import annotations

import argparse
import json
import sys

from headway.app.cli.answers import Failures, answers, conclude
from headway.app.cli.options import add_server, load, torch_options
from headway.app.cli.terminal import Terminal
from headway.app.cli.translate import numbered

EXAMPLE = """
headway embed path/to/all-MiniLM-L6-v2 < lines > vectors.jsonl
ls *.png | headway embed path/to/vit > vectors.jsonl                # each line is the path of an image
headway embed path/to/clip < lines > vectors.jsonl                  # each line is a text or the path of an image
"""
DIGITS = 7  # significant digits of an fp32 number


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add("--truncate", action="store_true", help="truncate lines that are too long for the model")
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    failures: Failures = []
    count = width = 0
    with torch_options(args):
        model = load(args)
        ask = lambda some: model.embed(some, truncate=args.truncate)  # noqa: E731
        for first, lines in numbered(sys.stdin):
            for _, vector in answers(lines, ask, failures, lambda found: found.tolist(), first):
                told = None if vector is None else [float(f"{value:.{DIGITS}g}") for value in vector]
                print(json.dumps(told), flush=False)
                count, width = count + 1, len(vector or ()) or width
    conclude({"lines": count, "width": width}, failures, terminal)
