"""The notebooks in examples/ run from their first cell to their last, with fewer steps and fewer data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("brief_samples")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))
SHORT = {"steps": 1, "count": 100}


def _cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def _shortened(code: str) -> str:
    """With the numbers of its first cell replaced by small ones."""
    for name, value in SHORT.items():
        code = re.sub(rf"^{name} = \d+", f"{name} = {value}", code, flags=re.MULTILINE)
    return code


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(name: str) -> dict[str, Any]:
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    code = ["".join(cell["source"]) for cell in _cells(path) if cell["cell_type"] == "code"]
    short = [_shortened(cell) for cell in code]
    assert short[0] != code[0]
    assert short[1:] == code[1:]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(short):
        exec(compile(cell, f"{name}.ipynb, code cell {number}", "exec"), names)
    return names


def test_the_first_hour(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = _run("first_hour")
    assert names["run"].summary["step"] == SHORT["steps"]
    assert [row["variant"] for row in names["found"].table()] == ["attention", "gru"]
    assert names["looked"].across
    assert names["looked"].picture()._repr_png_().startswith(b"\x89PNG")  # which a kernel shows
    assert "of 100 are right" in capsys.readouterr().out


def test_classification(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = _run("classification")
    assert set(names["model"].classify("hello")) == set(names["things"])
    assert "%" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path: Path) -> None:
    assert len(NOTEBOOKS) == 2
    cells = _cells(path)
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
