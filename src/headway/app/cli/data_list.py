"""`headway data list`: list the known data sets with source and licence."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway data list"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.data import is_present, known_sets

    rows = [
        {"name": s.name, "here": is_present(s), "what": s.description, "licence": s.licence, "source": s.url}
        for s in known_sets()
    ]
    terminal.print_table(rows)
    terminal.print_result({"sets": rows})
