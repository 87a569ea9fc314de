"""`headway verify`: check the files of a run or model against their digests."""

from __future__ import annotations

import argparse

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway verify runs/shakespeare
headway verify small --json
"""
_SHOWN = 20  # damaged files to list


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory or model")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        found = hw.verify(args.model)
    terminal.say(f"{args.model}: {found.files:,} files ({found.bytes:,} bytes) have digests")
    for line in found.damaged[:_SHOWN]:
        terminal.say(line)
    for path in found.unknown:
        terminal.say(f"{path} has no digest")
    whole = not found.damaged
    terminal.result({"path": args.model, "whole": whole, **found._asdict()})
    if not whole:
        count = len(found.damaged)
        raise UserError(
            f"{args.model} is damaged ({count} of {found.files} files, {found.damaged[0]}); restore it from a backup"
        )
