"""`headway import`: a published model into headway's own folder."""

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
    parser.add_argument(
        "model", metavar="MODEL", help="a folder in a published format, a file, or hf:owner/name on a hub"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.app.exchange import check_free, import_model
    from headway.formats.hub import find_folder
    from headway.formats.open import open_model
    from headway.nn.models import describe

    check_free(args.out)
    with torch_options(args):
        opened = open_model(find_folder(args.model))
        import_model(opened, args.out)
    count = describe(opened.model.config)["parameters"]  # type: ignore[arg-type]
    terminal.say(f"{args.model}: {opened.usage.family or 'a model'} of {count:,} parameters, now in {args.out}")
    terminal.result({"out": args.out, "family": opened.usage.family, "parameters": count})
