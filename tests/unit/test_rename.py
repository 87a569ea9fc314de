"""`tools/rename.py` renames by scope, refuses names that are taken, and the bytecode proves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
BEFORE = '''"""A module."""


def total(found, one=1):
    one = [one for one in found]
    return f"{len(one)} of {found!r}: {max(one, default=0):>{len(found)}}"


class Table:
    def __init__(self, seen):
        self.seen = seen

    def text(self):
        return total(found=self.seen)
'''
AFTER = '''"""A module."""


def total(rows, items=1):
    items = [items for items in rows]
    return f"{len(items)} of {rows!r}: {max(items, default=0):>{len(rows)}}"


class Table:
    def __init__(self, seen):
        self.rows = seen

    def text(self):
        return total(rows=self.rows)
'''


def rename(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "rename.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/module.py").write_text(BEFORE, encoding="utf-8")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.email=a@b", "-c", "user.name=a", "commit", "-qm", "before"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_names_are_renamed_by_scope_and_proved(folder: Path) -> None:
    lines = ["@ src/module.py", "total: found>rows one>items", "Table=seen>rows"]
    (folder / "names.map").write_text("\n".join(lines), encoding="utf-8")
    done = rename(folder, "apply", "names.map")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "src/module.py").read_text(encoding="utf-8") == AFTER
    proof = [sys.executable, str(TOOLS / "proof.py"), "HEAD"]
    assert "the same but for names" in subprocess.run(proof, cwd=folder, capture_output=True, text=True).stdout
    (folder / "src/module.py").write_text(AFTER.replace("default=0", "default=1"), encoding="utf-8")
    assert subprocess.run(proof, cwd=folder, capture_output=True, text=True).returncode == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("total: found>one", "one is bound there already"),
        ("total: found>max", "it would hide max"),
        ("total: lost>rows", "does not bind lost"),
        ("Table=text>class", "not a name"),
    ],
)
def test_names_that_are_taken_are_refused(folder: Path, line: str, problem: str) -> None:
    (folder / "names.map").write_text(f"@ src/module.py\n{line}", encoding="utf-8")
    done = rename(folder, "apply", "names.map")
    assert done.returncode == 1
    assert problem in done.stdout
    assert (folder / "src/module.py").read_text(encoding="utf-8") == BEFORE
