"""What lies beyond what a model met in training is said, once, and never where nothing does."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import headway as hw
from headway.checkpoints.familiar import Familiar, read_familiar
from headway.cli import main as cli


def test_unseen_symbols_and_longer_texts() -> None:
    met = Familiar.of(np.array([0, 1, 2, 2]), 8, longest=3, marks=(7, None))
    assert met.unseen == (3, 4, 5, 6)
    assert met.beyond(["a", "b"], [[0, 1, 7], [2, 2, 1]]) == []
    long, strange = met.beyond(["a", "b b b b", "c"], [[0, 1], [2, 2, 2, 2], [3, 0, 1]])
    assert long.startswith("longer than any text in training: 1 of 3, of 4 tokens at most")
    assert "1 of 3, such as 'c'" in strange
    assert met.beyond(["six"], [[3, *[0] * 2]])  # a third of them
    assert Familiar(None, (3,)).beyond(["rare"], [[3, *[0] * 9]]) == []  # a tenth: one rare word
    assert Familiar().beyond(["any"], [[1] * 1000]) == []


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    words = ["one", "two", "three", "four", "five"]
    lines = [f"{a} {b}\t{b} {a}" for a in words for b in words]
    (folder / "pairs.tsv").write_text("\n".join(lines * 4) + "\n")
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 2}
    hw.train("translation", data=folder / "pairs.tsv", set=settings, run=folder / "run", samples=0, progress=False)
    return folder / "run"


def test_a_translator_says_so_once(
    translator: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_familiar(translator).longest
    ask = ["translate", str(translator), "--beam", "1", "--json"]
    monkeypatch.setattr("sys.stdin", StringIO("one two\nthree one\n"))
    assert cli.main(ask) == cli.DONE
    told = capsys.readouterr()
    assert json.loads(told.out)["beyond"] == []
    monkeypatch.setattr("sys.stdin", StringIO(""))
    assert cli.main(ask) == cli.USER_ERROR
    assert "there is no line to translate; give some" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", StringIO("Привет мир\n" + "one two three " * 5 + "\n"))
    assert cli.main(ask) == cli.DONE
    told = capsys.readouterr()
    assert len(json.loads(told.out)["beyond"]) == 2


def test_a_language_model_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{number} birds sang in the trees.\n" for number in range(300)))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 2}
    hw.train("text", data=book, set=settings, run=tmp_path / "run", samples=0, progress=False)
    model = hw.load(tmp_path / "run", backend="torch")
    model.generate("12 birds sang", max_new_tokens=1)
    assert not model.beyond
    model.generate("世界你好", max_new_tokens=1)
    model.generate("世界你好", max_new_tokens=1)
    assert len(model.beyond) == 1
    assert sum("no text in training had" in record.message for record in caplog.records) == 1
