"""`headway data get`: download a known data set and verify it."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway data get multi30k"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name from `headway data list`")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.data import get

    paths = get(args.name)
    for path in paths:
        terminal.say(str(path))
    terminal.result({"name": args.name, "paths": paths})
