"""The commands of docs/explanation/history.md are real: they parse, and what they name exists."""

from __future__ import annotations

import json
import re
import shlex
from argparse import Namespace
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest

from headway.app.cli.compare import parse_grid
from headway.app.cli.main import _find, module_of
from headway.app.cli.options import Parser, add_common
from headway.app.recipes import configure_recipe, find_model_config
from headway.claims.experiments import claims, select_claims
from headway.claims.runner import load_evidence
from headway.config import parse_settings

ROOT = Path(__file__).parents[2]
HISTORY = (ROOT / "docs/explanation/history.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", HISTORY, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
ROWS = re.findall(
    r"^\| (\d+) \| (.*?) \| `headway claims (\S+)` \| \[(.+)\]\(\.\./\.\./(\S+)\) \|$", HISTORY, re.MULTILINE
)


def parsed(line: str) -> tuple[str, Namespace]:
    name, rest = _find(shlex.split(line, comments=True)[1:])
    command = import_module(module_of(name))
    parser = Parser(name, "a command", "an example")
    command.arguments(parser)
    add_common(parser)
    return name.split()[-1], parser.parse_args(rest)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_means_something(line: str) -> None:
    """Recipes take their settings, and models, claims and runs are there; runs by a command that stands before."""
    assert line.startswith("headway ")
    name, args = parsed(line)
    made = {str(parsed(other)[1].run) for other in COMMANDS[: COMMANDS.index(line)] if " --run " in other}
    if name == "train":
        find_model_config(args.recipe)
        configure_recipe(args.recipe, None, parse_settings(args.set), None)
    elif name == "compare":
        grid = parse_grid(args.set)
        for values in product(*grid.values()):
            configure_recipe(args.recipe, None, dict(zip(grid, values)), None)
    elif name == "claims":
        select_claims(args.names)
    elif name == "show":
        assert args.name in made or find_model_config(args.name)
    else:
        assert name == "generate"
        assert str(args.model) in made


def test_all_claims_stand_in_the_table() -> None:
    found = [(int(number), title, name) for number, title, name, *_ in ROWS]
    assert found == [(claim.number, claim.title, claim.name) for claim in claims().values()]
    for _, _, name, verdict, path in ROWS:
        result = json.loads((ROOT / path).read_text(encoding="utf-8"))
        assert result["name"] == name
        assert verdict.startswith("holds") == (result["verdict"] == "holds")
        assert load_evidence(claims()[name], (ROOT / path).parent), "the page of results needs it"


def test_every_claim_is_told() -> None:
    told = {name for line in COMMANDS if line.startswith("headway claims") for name in parsed(line)[1].names}
    assert told == set(claims())
