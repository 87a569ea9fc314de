"""`headway embed`: embed lines as vectors, one JSON list per line; null for an empty line or a damaged file."""

from __future__ import annotations

import argparse
import json
import sys

from headway.app.cli.inputs import Failures, predict_each, report_outcome
from headway.app.cli.options import add_server, add_shares, add_verb, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway embed path/to/all-MiniLM-L6-v2 < lines > vectors.jsonl
headway embed path/to/Qwen3-Embedding-0.6B --prompt query < questions > vectors.jsonl
ls *.png | headway embed path/to/vit > vectors.jsonl                # each line is an image path
headway embed path/to/clip < lines > vectors.jsonl                  # each line is text or an image path
headway embed path/to/all-MiniLM-L6-v2 --part 1/3 --out shares/ < lines   # on each machine, with its own number
headway embed --join shares/ > vectors.jsonl
"""
DIGITS = 7  # significant digits of an fp32 number


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory or published model")
    add_verb(parser, "embed")
    add_server(parser)
    add_shares(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    failures: Failures = []
    count = width = 0
    with torch_options(args):
        model = load(args)
        predict = lambda batch: model.embed(batch, **verb_options(args, "embed"))  # noqa: E731
        for first, lines in terminal.chunks(sys.stdin, failures):
            for _, vector in predict_each(lines, predict, failures, lambda vectors: vectors.tolist(), first):
                rounded = None if vector is None else [float(f"{value:.{DIGITS}g}") for value in vector]
                terminal.print_data(json.dumps(rounded))
                count, width = count + 1, len(vector or ()) or width
    report_outcome({"lines": count, "width": width}, failures, terminal)
