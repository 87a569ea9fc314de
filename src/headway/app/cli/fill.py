"""`headway fill`: predict the most probable words for the masks in a text."""

from __future__ import annotations

import argparse
import sys

from headway.app.cli.options import add_server, add_verb, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal, line_chunks

EXAMPLE = """
headway fill runs/masked "Paris is the [MASK] of France."
headway fill bert-base-uncased "Paris is the [MASK] of [MASK]." --top 10 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="text that contains [MASK] or <mask> (default: lines of standard input)",
    )
    add_verb(parser, "fill")
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    results = []
    with torch_options(args):
        model = load(args)
        for text in args.texts or (line for lines in line_chunks(sys.stdin) for line in lines):
            masks = model.fill(text, **verb_options(args, "fill"))
            results.append({"text": text, "masks": [[candidate._asdict() for candidate in mask] for mask in masks]})
            terminal.print(text)
            for number, mask in enumerate(masks, 1):
                line = "  ".join(f"{candidate.text} {candidate.probability:.3f}" for candidate in mask)
                terminal.print(f"  {number}: {line}")
    terminal.print_result({"results": results})
