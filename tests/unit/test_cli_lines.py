"""Lines of standard input: each keeps its place in the output, and messages name its number."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import understanding_data

import headway as hw
from headway.app.cli import main as cli
from headway.app.cli.inputs import Failures, predict_each
from headway.domains import recipe as find_recipe
from headway.errors import UserError

LINES = "red 1\n\nblue 2\n   \nred 3\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": f"{('red', 'blue')[number % 2]} {number}", "label": "ab"[number % 2]} for number in range(60)]
    recipe = understanding_data.small(find_recipe("classification"), **{"train.steps": 1, "train.precision": "fp32"})
    place = tmp_path_factory.mktemp("runs") / "colours"
    hw.train(recipe, rows, run=place, device="cpu", progress=False, samples=0)
    return place


def given(patch: pytest.MonkeyPatch, text: str) -> None:
    patch.setattr("sys.stdin", io.StringIO(text))


def test_empty_lines_keep_their_place(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, empty in (
        (["classify", str(run), "--top", "1"], ("\t", "\t   ")),
        (["classify", str(run), "--top", "1", "--format", "csv"], (",,", "   ,,")),
        (["embed", str(run)], ("null", "null")),
    ):
        given(monkeypatch, LINES)
        assert cli.main(command) == cli.USER_ERROR
        out, err = capsys.readouterr()
        lines = out.splitlines()[-5:]
        assert (lines[1], lines[3]) == empty
        assert len(out.splitlines()) == 5 + ("csv" in command)
        assert err.count("line 2 is empty; write some text on it") == err.count("line 4 is empty") == 1
    given(monkeypatch, LINES)
    cli.main(["classify", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [bool(row["labels"]) for row in found["results"]] == [True, False, True, False, True]
    assert len(found["errors"]) == 2


def test_a_line_that_cannot_be_read_is_named_by_its_number(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, "red 1\tblue\nred 2\nred\tblue 3\n")
    assert cli.main(["classify", str(run), "--pairs"]) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert err == "headway: line 2: 'red 2' has no TAB; separate the two texts with a TAB\n"
    assert out.count("\n") == 3


def test_what_is_wrong_with_all_lines_names_none_of_them() -> None:
    def refuse(some: object) -> list[str]:
        raise UserError("this model has no classes")

    failures: Failures = []
    with pytest.raises(UserError, match=r"^this model has no classes$"):
        list(predict_each(["a", "", "b"], refuse, failures, first=1))
    with pytest.raises(UserError, match=r"^this model has no classes$"):
        list(predict_each(["a"], refuse, failures, first=1))
    with pytest.raises(UserError, match=r"^this model has no classes$"):
        list(predict_each(["a", "b"], refuse, failures))


def test_a_file_that_is_given_as_a_text_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, remedy in (
        ("lines.txt", f"pass its lines: headway classify {run} < {tmp_path}/lines.txt"),
        ("table.csv", f"write its text column to a file, one text per line, and pass that: headway classify {run} <"),
    ):
        (tmp_path / name).write_text("text\nred\n", encoding="utf-8")
        assert cli.main(["classify", str(run), str(tmp_path / name)]) == cli.USER_ERROR
        assert f"{tmp_path / name} is a file, but this model takes text; {remedy}" in capsys.readouterr().err
    assert cli.main(["classify", str(run), "none.csv"]) == cli.USER_ERROR
    assert "file none.csv does not exist, and this model takes text" in capsys.readouterr().err
    assert cli.main(["classify", str(run), "I wrote to none.csv"]) == cli.DONE
    assert cli.main(["classify", str(run), str(tmp_path)]) == cli.USER_ERROR
    assert f"{tmp_path} is a folder, but this model takes text" in capsys.readouterr().err
