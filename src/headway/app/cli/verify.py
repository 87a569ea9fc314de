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
_MAX_SHOWN = 20  # damaged files to list


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory or model")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        verification = hw.verify(args.model)
    terminal.print(f"{args.model}: {verification.files:,} files ({verification.bytes:,} bytes) have digests")
    for line in verification.damaged[:_MAX_SHOWN]:
        terminal.print(line)
    for path in verification.unknown:
        terminal.print(f"{path} has no digest")
    is_intact = not verification.damaged
    terminal.print_result({"path": args.model, "whole": is_intact, **verification._asdict()})
    if not is_intact:
        count = len(verification.damaged)
        raise UserError(
            f"{args.model} is damaged ({count} of {verification.files} files, {verification.damaged[0]}); restore it "
            "from a backup"
        )
