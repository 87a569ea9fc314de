"""`headway export`: convert a run or model to a format that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway export runs/my-gpt2 out/
headway export runs/my-llama my-llama.gguf --dtype q4_k_m
headway export runs/photos photos/model.onnx                        # for onnxruntime
"""
DTYPES = ("f32", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory or model")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder, or file such as a.gguf or a.onnx")
    parser.add_argument(
        "--format",
        choices=["hf", "gguf", "onnx"],
        help="output format; hf is a folder for transformers (default: from OUT's suffix, or hf)",
    )
    parser.add_argument(
        "--dtype", type=str.lower, choices=DTYPES, help="number format of the GGUF file, as in llama.cpp (default: f32)"
    )
    parser.add_argument(
        "--card", action="store_true", help="write a model card, README.md, next to a .gguf or .onnx file, too"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.app.conversion import export_checked, format_from_suffix

    with torch_options(args):
        target_format = args.format or format_from_suffix(args.out)
        family, check = export_checked(args.model, args.out, target_format, args.dtype, args.card)
    terminal.print(f"exported {args.model} to {args.out} as {family}")
    terminal.print(check.summary)
    result = {"out": args.out, "family": family, "format": target_format}
    terminal.print_result({**result, "check": check._asdict()})
