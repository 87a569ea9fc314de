"""Tables and CoNLL columns: what is read, what is refused, and that no text is on two sides."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from headway.data import SplitConfig, find_set, read_conll, read_table, sides_of
from headway.errors import UserError

COLUMNS = {"text": "text", "label": "label"}


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_banking77_is_read_whole(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    table = read_table(find_set("banking77"), {"text": "text", "label": "category"})
    assert len(table) == 10_003 + 3_080
    assert len(set(table.columns["label"])) == 77
    assert np.bincount(table.named).tolist() == [0, 10_003, 0, 3_080]
    assert any("\n" in text for text in table.columns["text"])  # quoted line breaks stay
    sides = sides_of(table.columns["text"], table.named, SplitConfig(validation=0.1, test=0.0))
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [8_970, 1_033, 3_080]


def test_one_table_in_every_form(tmp_path: Path) -> None:
    rows = [("Wo ist, bitte, der Bahnhof?", "de"), ('He said "no"', "en")]
    write(tmp_path / "a.csv", 'text,label\n"Wo ist, bitte, der Bahnhof?",de\n"He said ""no""",en\n')
    write(tmp_path / "a.tsv", "label\ttext\r\n" + "".join(f"{label}\t{text}\r\n" for text, label in rows))
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t, "label": s, "id": 1}) + "\n\n" for t, s in rows))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes()))
    for name in ("a.csv", "a.tsv", "a.jsonl", "b.csv.gz"):
        table = read_table([tmp_path / name], COLUMNS)
        assert list(zip(table.columns["text"], table.columns["label"])) == rows, name
    assert len(read_table([tmp_path], COLUMNS)) == 8
    assert table.place(1).endswith("b.csv.gz, line 3")


def test_numbers_and_truths_of_json_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 3}\n{"text": "b", "label": 0.5}\n')
    assert read_table([path], COLUMNS).columns["label"] == ["3", "0.5"]
    path = write(tmp_path / "b.jsonl", '{"text": "a", "label": true}\n')
    assert read_table([path], COLUMNS).columns["label"] == ["true"]


def test_an_optional_column_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,y\n")
    names = {**COLUMNS, "text2": "text2"}
    assert read_table([path], names, optional=("text2",)).columns == {"text": ["x"], "label": ["y"]}
    with pytest.raises(UserError, match="no column 'text2'"):
        read_table([path], names)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,lable\nx,y\n", "no column 'label' .did you mean 'lable'.*task.label=NAME"),
        ("a.csv", "text|label\nx|y\n", "no column 'text'"),
        ("a.csv", "text,label\nx,y\nx,y,z\n", "line 3 has 3 columns and the header 2; put quotes"),
        ("a.tsv", "text\tlabel\nx y\n", "line 2 has 1 columns and the header 2; write one TAB"),
        ("a.csv", "text,label\n  ,y\n", "line 2: 'text' is empty"),
        ("a.csv", 'text,label\n"x,y\n', "cannot be read .* check its quotes"),
        ("a.csv", "text,label\n", "there are no rows"),
        ("a.csv", "text,label\n\xfc,y\n", "not UTF-8 at byte 11 .* iconv"),
        ("a.jsonl", '{"text": "x"}\n', "line 1 has no key 'label'"),
        ("a.jsonl", '{"text": "x", "label": ["y"]}\n', "line 1: 'label' is \\['y'\\]; give text"),
        ("a.jsonl", '{"text": "x", "label": null}\n', "'label' is None"),
        ("a.jsonl", "x,y\n", "line 1 is not JSON"),
        ("a.txt", "x\n", "unknown extension '.txt'; readable are .csv"),
    ],
)
def test_bad_tables_are_errors(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table([write(tmp_path / name, content, "latin-1")], COLUMNS)


def test_no_text_is_on_two_sides(data_dir: Path) -> None:
    with zipfile.ZipFile(data_dir / "translation/tatoeba-deu-eng.zip") as archive:
        name = next(name for name in archive.namelist() if "deu" in name)
        lines = archive.read(name).decode().splitlines()[:5000]
    keys = [line.split("\t")[0] for line in lines]  # English sentences repeat
    assert len(set(keys)) < len(keys)
    sides = sides_of(keys, np.zeros(len(keys), np.uint8), SplitConfig(0.1, 0.1))
    held = [{keys[row] for row in sides[side]} for side in ("train", "validation", "test")]
    assert not held[0] & held[1]
    assert not held[2] & (held[0] | held[1])
    assert sum(map(len, sides.values())) == len(keys)
    assert 0.05 < len(sides["test"]) / len(keys) < 0.15


def test_what_a_named_file_holds_out_is_not_trained_on() -> None:
    keys, named = ["a", "b", "c", "b"], np.array([1, 1, 1, 3], np.uint8)
    sides = sides_of(keys, named, SplitConfig(0.0, 0.0))
    assert sides["train"].tolist() == [0, 2]
    assert sides["test"].tolist() == [3]


def test_conll_columns(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\n# sent_id = 1\nAngela NNP B-PER\nMerkel NNP I-PER\n\n\nruns VB O\n"
    write(tmp_path / "eng.train", text)
    write(tmp_path / "eng.testa", "Hamburg\tB-LOC\n")
    write(tmp_path / "eng.testb", "Rome B-LOC")
    found = read_conll([tmp_path / name for name in ("eng.train", "eng.testa", "eng.testb")])
    assert [one.words for one in found.sentences] == [("Angela", "Merkel"), ("runs",), ("Hamburg",), ("Rome",)]
    assert found.sentences[0].tags == ("B-PER", "I-PER")
    assert found.named.tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Angela B-PER\nMerkel\n", "line 2: 'Merkel' is not a word with a tag"),
        ("Angela\t\n", "line 1: .* not a word with a tag"),
        ("\n\n", "there are no sentences"),
    ],
)
def test_bad_columns_are_errors(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_conll([write(tmp_path / "a.conll", content)])
    with pytest.raises(UserError, match="no files"):
        read_conll([])
    with pytest.raises(UserError, match="no files"):
        read_table([], COLUMNS)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(separator: str, encoding: str, tmp_path: Path) -> None:
    text = f'text{separator}label\r\n"Größe; a, b\tc"{separator}de\r\n'
    table = read_table([write(tmp_path / "a.csv", text, encoding)], COLUMNS)
    assert table.columns == {"text": ["Größe; a, b\tc"], "label": ["de"]}


def test_a_table_of_one_column_has_commas(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text\n"a, b; c"\n')
    assert read_table([path], {"text": "text"}).columns["text"] == ["a, b; c"]
    with pytest.raises(UserError, match="has 3 columns and the header 2; put quotes around texts with commas"):
        read_table([write(tmp_path / "b.csv", "text;label\na;b;c\n")], COLUMNS)
    with pytest.raises(UserError, match=r"not UTF-8 at byte 11 \(0x80\), but perhaps cp1252, .*iconv -f CP1252"):
        read_table([write(tmp_path / "c.csv", "text;label\n€;b\n", "cp1252")], COLUMNS)
