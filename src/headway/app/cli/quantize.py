"""`headway quantize`: quantise the weights of a model to 8 or 4 bits."""

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
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory or published model")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder")
    parser.add_argument("--weights", choices=("int8", "int4"), required=True, help="number format of the weights")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        quantization = hw.quantize(args.model, args.out, args.weights)
    before, after = quantization.bytes_before, quantization.bytes
    terminal.print(
        f"{args.model}: {before:,} bytes of weights quantised to {after:,} in {args.weights}, written to {args.out}"
    )
    terminal.print_result({"out": args.out, "weights": args.weights, "bytes_before": before, "bytes": after})
