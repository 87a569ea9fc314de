"""The page of each command, from its argument parser."""

from __future__ import annotations

import argparse
import re
from importlib import import_module

from headway.app.cli.main import COMMANDS, module_of
from headway.app.cli.options import Parser, add_common
from pages.settings import GENERATED

HEAD = f"""# Commands

Every command has `--help` with an example, `--json` for one JSON object as the last line of its output, and the [options of every
command](#options-of-every-command). A command exits with 0 on success, 2 on wrong input (one line on stderr with the change to make), 1 if it fails and
130 after Ctrl-C.

{GENERATED}

| command | summary |
|---|---|
"""


def page() -> str:
    """The whole page."""
    index, parts = HEAD, []
    for name, summary in COMMANDS.items():
        title = f"headway {name}"
        index += f"| [`{title}`](#{title.replace(' ', '-')}) | {_cell(summary)} |\n"
        command = import_module(module_of(name))
        parser = Parser(title, summary, command.EXAMPLE)
        command.arguments(parser)
        parts.append(f"## {title}\n\n{_letters(parser.description or '')}\n")
        parts += _options(parser)
        parts.append(f"```\n{command.EXAMPLE.strip()}\n```\n")
    common = argparse.ArgumentParser(add_help=False)
    add_common(common)
    parts.append("## Options of every command\n")
    parts += _options(common)
    return index + "\n" + "\n".join(parts).rstrip() + "\n"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """A table of a parser's arguments."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        choices = "|".join(map(str, action.choices)) if action.choices else ""
        value = "" if action.nargs == 0 else f" {metavar or choices or action.dest.upper()}"
        if not action.option_strings:
            name = metavar or choices or action.dest.upper()
        else:
            name = f"{', '.join(action.option_strings)}{value}"
        more = " ..." if action.nargs in ("+", "*") else ""
        rows.append(
            f"| `{name}{more}` | {_cell(parser._get_formatter()._expand_help(action) if action.help else '')} |"
        )
    return (
        ["\n".join(["| argument | meaning |", "|---|---|", *(row.replace("||", "|") for row in rows)]) + "\n"]
        if rows
        else []
    )


def _cell(text: str) -> str:
    return _letters(text).replace("\n", " ")


def _letters(text: str) -> str:
    """Text as Markdown, in which stars, lines and angles outside of code are letters."""
    return "`".join(
        re.sub(r"([*_|<])", r"\\\1", part) if not place % 2 else part.replace("|", "\\|")
        for place, part in enumerate(text.split("`"))
    )
