"""`headway show`: what a recipe, preset, run or model is made of."""

from __future__ import annotations

import argparse

from headway.cli.terminal import Terminal

EXAMPLE = """
headway show transformer-base
headway show runs/shakespeare --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|RUN", help="a recipe, a preset or a run directory")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.api import find_model
    from headway.models import describe

    config = find_model(args.name)
    facts = describe(config)
    terminal.say(f"{args.name}\n")
    for key, value in facts.items():
        if isinstance(value, (int, float)):
            terminal.say(f"  {key.replace('_', ' '):<26}{value:>18,}")
    terminal.say()
    terminal.say("\n".join(tree(config)))
    terminal.result({"name": args.name, **facts})


def tree(config: object) -> list[str]:
    """The config as an indented tree; equal neighbours (the blocks of a stack) are shown once."""
    from headway.config import to_dict

    lines: list[str] = []
    _branch(to_dict(config), "", lines)
    return lines


def _branch(node: dict, indent: str, lines: list[str]) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}: {value.get('kind', '')}".rstrip())
            _branch({k: v for k, v in value.items() if k != "kind"}, indent + "  ", lines)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for first, last, item in runs(value):
                span = f"{first}" if first == last else f"{first}-{last}"
                lines.append(f"{indent}{key} {span}: {item.get('kind', '')}".rstrip(": "))
                _branch({k: v for k, v in item.items() if k != "kind"}, indent + "  ", lines)
        elif value is not None and value != {} and value != []:
            lines.append(f"{indent}{key}: {value}")


def runs(items: list) -> list[tuple[int, int, dict]]:
    """Equal neighbours as (first index, last index, item)."""
    found: list[tuple[int, int, dict]] = []
    for index, item in enumerate(items):
        if found and found[-1][2] == item:
            found[-1] = (found[-1][0], index, item)
        else:
            found.append((index, index, item))
    return found
