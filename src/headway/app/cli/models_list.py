"""`headway models list`: list the small models that headway makes in minutes."""

from __future__ import annotations

import argparse

from headway.app.cli.terminal import Terminal

EXAMPLE = "headway models list"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.app.starters import STARTERS, models_folder

    rows = [starter.description() for starter in STARTERS.values()]
    terminal.print_table(
        [
            {
                "name": row["name"],
                "made": {"missing": "no", "finished": "yes"}.get(row["state"], row["state"]),
                "minutes": row["minutes"],
                "MB": row["megabytes"],
                "network": "yes" if row["needs_network"] else "no",
                "score": row["score"],
                "what it does": row["purpose"],
            }
            for row in rows
        ]
    )
    terminal.print("\nData:\n")
    terminal.print_table([{"name": row["name"], **entry} for row in rows for entry in row["data"]])
    terminal.print(f"\nfolder: {models_folder()}")
    terminal.print("make one: headway models make NAME")
    terminal.print_result({"folder": models_folder(), "models": rows})
