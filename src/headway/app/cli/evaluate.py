"""`headway evaluate`: the standard metrics of the domain."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import add_data, add_weights, load, torch_options, whole
from headway.app.cli.terminal import Terminal, cell

EXAMPLE = """
headway evaluate runs/shakespeare
headway evaluate runs/en-de --data newstest.en newstest.de --json
headway evaluate runs/photos --data more-photos/                    # its test part, or all of it if it has none
headway evaluate models/gpt2 --data wiki.test.raw --stride 512
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="a run directory or a published model")
    add_data(parser, "your own data: its test or val folder, or all of it")
    parser.add_argument("--split", help="validation, test or all (default: test, or what --data has)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="measure on N samples only")
    parser.add_argument(
        "--stride",
        type=whole(1),
        metavar="N",
        help="windows of a language model's context, each N tokens after the last",
    )
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        model = load(args)
        scores = model.evaluate(args.data, split=args.split, limit=args.limit, stride=args.stride)
    if args.data and args.split is None and scores["split"] != "all":
        terminal.note(
            f"evaluated on the {scores['split']} part of {', '.join(map(str, args.data))}; --split all takes all"
        )
    if "note" in scores:
        terminal.note(scores["note"])
    for name, value in scores.items():
        if name != "note":
            terminal.say(f"{name}: {cell(value)}")
    terminal.result(scores)
