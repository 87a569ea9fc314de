"""`headway quantize`: quantise the weights of a model to 8 or 4 bits."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import number, torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway quantize runs/shakespeare small --weights int8
headway quantize hf:Qwen/Qwen3-0.6B qwen5 --bits-per-weight 5 --report my-texts.txt
headway generate small --prompt "ROMEO:"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory or published model")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--weights", choices=("int8", "int4"), help="number format of all layers")
    formats.add_argument(
        "--bits-per-weight",
        type=number(0, above=True),
        metavar="BITS",
        help="maximum mean bits per weight, scales included; the format of each layer is chosen (int4, int8, fp32)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="TEXTS",
        help="file or folder of texts; print the loss of each format and the divergence of each layer on them",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        quantization = hw.quantize(args.model, args.out, args.weights, args.bits_per_weight, args.report)
    before, after, report = quantization.bytes_before, quantization.bytes, quantization.report
    if report is not None:
        terminal.print(f"{args.report}: {report.tokens:,} tokens; divergence: {report.measure}")
        terminal.print_table([cost._asdict() for cost in report.formats])
        terminal.print("\ndivergence if only this layer is quantised")
        rows = [{"layer": cost.layer, "parameters": cost.weights, **cost.divergence} for cost in report.layers]
        terminal.print_table([{**row, "written as": quantization.layers[row["layer"]]} for row in rows])
        terminal.print()
    elif quantization.weights == "mixed":
        terminal.print_table([{"layer": layer, "written as": dtype} for layer, dtype in quantization.layers.items()])
    used = ", ".join(dict.fromkeys(quantization.layers.values()))
    terminal.print(f"{args.model}: {before:,} bytes of weights quantised to {after:,} in {used}, written to {args.out}")
    result = {"out": args.out, "weights": quantization.weights, "bytes_before": before, "bytes": after}
    details = None
    if report is not None:
        parts = {name: [cost._asdict() for cost in getattr(report, name)] for name in ("formats", "layers")}
        details = {**report._asdict(), **parts}
    terminal.print_result({**result, "layers": quantization.layers, "report": details})
