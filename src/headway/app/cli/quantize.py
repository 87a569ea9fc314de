"""`headway quantize`: a model with its weights in 8 or 4 bits."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway quantize runs/shakespeare small --weights int8
headway generate small --prompt "ROMEO:"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="a run directory or a published model")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--weights", choices=("int8", "int4"), required=True, help="bits of a weight")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        found = hw.quantize(args.model, args.out, args.weights)
    before, after = found.bytes_before, found.bytes
    terminal.say(f"{args.model}: {before:,} bytes of weights, {after:,} in {args.weights}, now in {args.out}")
    terminal.result({"out": args.out, "weights": args.weights, "bytes_before": before, "bytes": after})
