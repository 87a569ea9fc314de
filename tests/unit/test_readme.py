"""The README's Python and commands run as they stand."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from headway.cli.main import _find, module_of
from headway.cli.options import Parser, add_common

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [body for kind, body in found if kind == language]


def test_python(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Its minute is shortened to a few steps; the rest is executed to the letter."""
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    assert 8 <= len([line for line in code.splitlines() if line.strip()]) <= 12
    short = code.replace(
        '"shakespeare", minutes=1)', '"shakespeare", set={"train.steps": 10, "train.evaluate_limit": 20})'
    )
    assert short != code
    exec(compile(short, "README.md", "exec"), {})
    assert "loss" in capsys.readouterr().out


def test_commands_exist() -> None:
    """Every `headway ...` line parses as the command line has it."""
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("headway ")]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line.split(" < ")[0], comments=True)
        name, rest = _find(words[1:])
        command = import_module(module_of(name))
        parser = Parser(name, "a command", "an example")
        command.arguments(parser)
        add_common(parser)
        parser.parse_args(rest)


def test_first_screen() -> None:
    """One sentence, the two commands, the Python and the tables, before anything else."""
    first = README.split("## ")[0]
    for needed in ("make demo", "make test", "import headway as hw", "| mixers along time", "| domain"):
        assert needed in first
