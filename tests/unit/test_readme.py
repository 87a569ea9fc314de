"""The README's Python and the commands of all pages run as they stand."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from headway.app.cli.main import _find, module_of
from headway.app.cli.options import Parser, add_common

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("brief_samples")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, page: Path = PAGES[0]) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    """Every `headway ...` line parses as the command line has it."""
    whole = [block.replace("\\\n", " ") for block in blocks("", page)]
    lines = [line for block in whole for line in block.splitlines() if line.startswith("headway ")]
    assert lines or page.stem != "README"
    for line in lines:
        words = shlex.split(line.split(" < ")[0], comments=True)
        name, rest = _find(words[1:])
        command = import_module(module_of(name))
        parser = Parser(name, "a command", "an example")
        command.arguments(parser)
        add_common(parser)
        parser.parse_args(rest)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_first_screen() -> None:
    """What it is, the two commands and one way to a result, before anything else; read in two minutes."""
    text = PAGES[0].read_text(encoding="utf-8")
    first = text.split("Five more")[0]
    for needed in ("make demo", "make test", "headway train text --data", "headway generate"):
        assert needed in first
    assert len(text.split()) < 1000
