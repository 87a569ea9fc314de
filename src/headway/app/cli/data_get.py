"""`headway data get`: download a known data set and verify it."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway data get multi30k"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name from `headway data list`")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.data import get_set

    paths = get_set(args.name)
    for path in paths:
        terminal.print(str(path))
    terminal.print_result({"name": args.name, "paths": paths})
