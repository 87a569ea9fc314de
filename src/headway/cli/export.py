"""`headway export`: a run or model in a format that others read."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.cli.options import torch_options
from headway.cli.terminal import Terminal

EXAMPLE = """
headway export runs/my-gpt2 out/
headway export runs/my-llama my-llama.gguf --format gguf --dtype q8_0
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="a run directory or a model")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder or, for gguf, the file to write")
    parser.add_argument("--format", choices=["hf", "gguf"], default="hf", help="hf: what transformers reads (default)")
    parser.add_argument("--dtype", choices=["f32", "f16", "q8_0"], help="of a gguf file (default: f32)")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        family = hw.export(args.model, args.out, args.format, args.dtype)
    terminal.say(f"{args.model} is now in {args.out}, as {family}")
    terminal.result({"out": args.out, "family": family, "format": args.format})
