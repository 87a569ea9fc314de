"""`headway import`: convert a published model to headway's own format."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway import models/gpt2 my-gpt2
headway import stories260K.bin stories
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder or file in a published format, or hf:owner/name")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.app.conversion import check_empty, import_model
    from headway.formats.deferred import deferred_weights
    from headway.formats.open import open_model
    from headway.io.hub import find_folder
    from headway.nn.models import describe

    check_empty(args.out)
    with torch_options(args):
        with deferred_weights():
            opened = open_model(find_folder(args.model))
        import_model(opened, args.out)
    count = describe(opened.model.config)["parameters"]  # type: ignore[arg-type]
    terminal.print(f"imported {args.model} ({opened.usage.family or 'a model'}, {count:,} parameters) to {args.out}")
    terminal.print_result({"out": args.out, "family": opened.usage.family, "parameters": count})
