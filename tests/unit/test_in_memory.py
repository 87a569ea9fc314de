"""Data from memory: tables, rows and texts become one file, which a run keeps and reads again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import headway as hw
from headway.app.cli import main as cli
from headway.data import iter_documents, read_table
from headway.learn.run import RunDirectory
from headway.predict.in_memory_data import data_paths

ROWS = [{"text": "ein Satz", "label": "de"}, {"text": "a sentence", "label": 3}]


class Pandas:
    """What pandas has of a table."""

    columns = ("text", "label")

    def itertuples(self, index: bool, name: None) -> Iterator[tuple]:
        assert not index
        return (tuple(row.values()) for row in ROWS)


class Polars:
    """What polars has of a table."""

    columns = ("text", "label")

    def iter_rows(self, named: bool) -> Iterator[dict]:
        assert named
        return iter(ROWS)


class Dataset(list):
    """What datasets has: rows that are mappings."""


@pytest.mark.parametrize("data", [ROWS, tuple(ROWS), iter(ROWS), Pandas(), Polars(), Dataset(ROWS)])
def test_rows_of_every_kind_are_one_table(data: Any) -> None:
    with data_paths(data, "understanding") as path:
        table = read_table([path], {"text": "text", "label": "label"})  # type: ignore[list-item]
    assert table.columns == {"text": ["ein Satz", "a sentence"], "label": ["de", "3"]}
    assert not Path(str(path)).exists()


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array])
def test_texts_are_documents(kind: Callable[[list[str]], Any]) -> None:
    texts = ["One line.\nAnother.", "word", "größer als 1/2", "see notes.txt or not"]
    with data_paths(kind(texts), "text") as path:
        assert list(iter_documents([path])) == texts  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("data", "domain"),
    [
        ("a text that is a path.txt", "text"),
        (["a.txt", "b c.txt"], "text"),  # mistyped paths are no texts
        (["owner/name"], "text"),
        (["no such file", "nor this"], "translation"),
        ([Path("no such file")], "text"),
        ([], "text"),
    ],
)
def test_paths_stay_paths(data: Any, domain: str) -> None:
    with data_paths(data, domain) as paths:
        assert paths == data
    with data_paths(iter([Path("a"), Path("b")]), "chess") as paths:
        assert paths == [Path("a"), Path("b")]


def test_addresses_in_rows_stay_addresses(tmp_path: Path) -> None:
    with data_paths([{"path": "s3://bucket/out/index.json", "image": 0}], "vision", tmp_path) as path:
        assert json.loads(Path(cast(Any, path)).read_text())["path"] == "s3://bucket/out/index.json"


def test_strings_that_are_there_are_paths(tmp_path: Path) -> None:
    (tmp_path / "my notes").mkdir()
    names = [str(tmp_path / "my notes"), "and so on and on"]
    with data_paths(names, "text") as paths:
        assert paths == names


def test_values_are_as_json_has_them(tmp_path: Path) -> None:
    row = {
        "path": "a.png",
        "n": np.int64(3),
        "x": np.array([0.5, float("nan")]),
        "deep": [{"role": Path("b")}],
        "no": None,
    }
    with data_paths([row], "vision", tmp_path) as path:
        found = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    assert found == {
        "path": str(Path("a.png").absolute()),
        "n": 3,
        "x": [0.5, None],
        "deep": [{"role": "b"}],
        "no": None,
    }


@pytest.mark.parametrize(
    ("data", "domain", "message"),
    [
        (3, "text", "the data are 3; pass paths, a table, or an iterable of rows"),
        (b"ab", "text", "the data are b'ab'"),
        ({"train": ROWS}, "text", "a dict with several parts; pass one of them, as in data['train']"),
        ([*ROWS, 4], "text", "row 3 of the data is 4; pass strings, or mappings with a text"),
        (["a", *ROWS], "understanding", "row 1 of the data is 'a'; pass mappings"),
        (ROWS, "chess", "chess recipes read files, but the data contain a dict; pass file paths"),
        ([{"text": SimpleNamespace()}], "text", "row 1: 'text' is a SimpleNamespace; pass strings, numbers"),
        ([{"text": float("inf")}], "text", "row 1: 'text' is inf"),
    ],
)
def test_what_is_no_data_is_one_line_and_leaves_nothing(data: Any, domain: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(hw.UserError) as caught, data_paths(data, domain, tmp_path / "run"):
        pass
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_stays_where_a_run_begins(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with data_paths(ROWS, "text", run) as path:
        assert Path(str(path)).parent == run / "data"
    assert not run.exists()
    for _ in range(2):
        with data_paths(iter(ROWS), "text", run) as path:
            RunDirectory(run).recipe.write_text(json.dumps({"data": [str(path)]}))
        assert list((run / "data").iterdir()) == [path]
    with data_paths(ROWS[:1], "text", run) as other:
        assert other != path
    assert list((run / "data").iterdir()) == [path]


def test_a_run_of_texts_repeats_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 1, "task.codec": "byte", "task.size": 257}
    settings |= {"task.context": 16, "train.steps": 2, "train.batch_tokens": 64, "train.precision": "fp32"}
    settings |= {"task.split.validation": 0.3, "task.split.test": 0.3}
    how: Any = {"device": "cpu", "progress": False, "samples": 0}
    texts = [f"The number {number} is no letter." for number in range(60)]
    run = hw.train("text", iter(texts), settings, run=tmp_path / "run", **how)
    [file] = (tmp_path / "run" / "data").iterdir()
    assert run.recipe.data == (str(file),)
    again = hw.train(tmp_path / "run" / "recipe.json", run=tmp_path / "again", **how)
    assert again.summary["scores"] == run.summary["scores"]
    hw.train("text", texts, settings, run=tmp_path / "run", resume=True, **how)
    with pytest.raises(hw.UserError, match=r"trained on other data: the new data have 59 samples, not 60; pass"):
        hw.train("text", texts[1:], settings, run=tmp_path / "run", resume=True, **how)
    assert list((tmp_path / "run" / "data").iterdir()) == [file]
    found = hw.load(tmp_path / "run").evaluate([{"text": text} for text in texts])
    assert found["split"] == "all"


def test_what_the_shell_names_is_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("no such notes", "no such notes"), ("", "'' is not a path")):
        assert cli.main(["train", "text", "--data", name, "--run", str(tmp_path / "run")]) == cli.USER_ERROR
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
