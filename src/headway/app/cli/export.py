"""`headway export`: a run or model in a format that others read."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway export runs/my-gpt2 out/
headway export runs/my-llama my-llama.gguf --dtype q8_0
headway export runs/photos photos/model.onnx                        # for onnxruntime
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="a run directory or a model")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder, or a file, as in a.gguf, a.onnx")
    parser.add_argument(
        "--format",
        choices=["hf", "gguf", "onnx"],
        help="hf is what transformers reads (default: by the end of OUT, or else hf)",
    )
    parser.add_argument("--dtype", choices=["f32", "f16", "q8_0"], help="of a gguf file (default: f32)")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw
    from headway.app.exchange import ending

    with torch_options(args):
        form = args.format or ending(args.out)
        family = hw.export(args.model, args.out, form, args.dtype)
    terminal.say(f"{args.model} is now in {args.out}, as {family}")
    terminal.result({"out": args.out, "family": family, "format": form})
