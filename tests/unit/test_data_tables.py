"""Tables and CoNLL columns: what is read, what is refused, and that no text is on two sides."""

from __future__ import annotations

import csv
import gzip
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from headway.data import SplitConfig, find_set, iter_pairs, read_conll, read_table, split_by_text
from headway.data.delimited import read_delimited
from headway.data.input_files import File
from headway.data.labels import merge_spellings
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
    assert np.bincount(table.named_splits).tolist() == [0, 10_003, 0, 3_080]
    assert any("\n" in text for text in table.columns["text"])  # quoted line breaks stay
    sides = split_by_text(table.columns["text"], table.named_splits, SplitConfig(validation=0.1, test=0.0))
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
    assert table.location(1).endswith("b.csv.gz, line 3")


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
        ("a.csv", "text,label\nx,y\nx,y,z\n", "line 3 has 3 columns but the header has 2; put quotes"),
        ("a.tsv", "text\tlabel\nx y\n", "line 2 has 1 columns but the header has 2; write one TAB"),
        ("a.csv", "text,label\n  ,y\n", "line 2: 'text' is empty"),
        ("a.csv", 'text,label\n"x,y\n', "is not valid CSV .* check its quotes"),
        ("a.csv", "text,label\n", "there are no rows"),
        ("a.csv", "text,label\n\xfc,y\n", "not UTF-8 at byte 11 .* iconv"),
        ("a.jsonl", '{"text": "x"}\n', "line 1 has no key 'label'"),
        ("a.jsonl", '{"text": "x", "label": ["y"]}\n', "line 1: 'label' is \\['y'\\]; write a string"),
        ("a.jsonl", '{"text": "x", "label": null}\n', "'label' is None"),
        ("a.jsonl", "x,y\n", "line 1 is not JSON"),
        ("a.txt", "x\n", "unknown extension '.txt'; use .csv"),
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
    sides = split_by_text(keys, np.zeros(len(keys), np.uint8), SplitConfig(0.1, 0.1))
    held = [{keys[row] for row in sides[side]} for side in ("train", "validation", "test")]
    assert not held[0] & held[1]
    assert not held[2] & (held[0] | held[1])
    assert sum(map(len, sides.values())) == len(keys)
    assert 0.05 < len(sides["test"]) / len(keys) < 0.15


def test_what_a_named_file_holds_out_is_not_trained_on() -> None:
    keys, named = ["a", "b", "c", "b"], np.array([1, 1, 1, 3], np.uint8)
    sides = split_by_text(keys, named, SplitConfig(0.0, 0.0))
    assert sides["train"].tolist() == [0, 2]
    assert sides["test"].tolist() == [3]


def test_conll_columns(tmp_path: Path) -> None:
    comments = "# newdoc id = a-b\n# newpar\n# sent_id = 1\n# id 52-af\tdomain=en\n"
    text = f"-DOCSTART- -X- O\n\n{comments}Angela NNP B-PER\nMerkel NNP I-PER\n\n\n# O\nruns VB O\n"
    write(tmp_path / "eng.train", text)
    write(tmp_path / "eng.testa", "Hamburg\tB-LOC\n")
    write(tmp_path / "eng.testb", "Rome B-LOC")
    found = read_conll([tmp_path / name for name in ("eng.train", "eng.testa", "eng.testb")])
    assert [one.words for one in found.sentences] == [("Angela", "Merkel"), ("#", "runs"), ("Hamburg",), ("Rome",)]
    assert found.sentences[0].tags == ("B-PER", "I-PER")
    assert found.named_splits.tolist() == [1, 1, 2, 3]


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
    with pytest.raises(UserError, match="no tagged text files"):
        read_conll([])
    with pytest.raises(UserError, match="no files; pass"):
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
    with pytest.raises(UserError, match="has 3 columns but the header has 2; put quotes around texts"):
        read_table([write(tmp_path / "b.csv", "text;label\na;b;c\n")], COLUMNS)
    with pytest.raises(UserError, match=r"not UTF-8 at byte 11 \(0x80\), but perhaps Windows' cp1252; .*iconv -f"):
        read_table([write(tmp_path / "c.csv", "text;label\n€;b\n", "cp1252")], COLUMNS)


def fields_of(path: Path) -> list[list[str]]:
    return [fields for _, fields in read_delimited(File(path))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label,text\nx,y,z\n", "two columns named 'text' .1 and 3.; rename or remove one"),
        ("a.tsv", "text\tlabel\tid\tlabel\nx\ty\t1\tz\n", "two columns named 'label' .2 and 4."),
        ("a.csv", "text,label, label\nx,y,z\n", "two columns named 'label' .2 and 3."),
        ("a.jsonl", '{"text": "x", "label": "y", "label": "z"}\n', "line 1 has the key 'label' twice .'y' and 'z'."),
    ],
)
def test_what_is_named_twice_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table([write(tmp_path / name, content)], COLUMNS)


def test_columns_of_a_table_that_spreadsheets_leave_empty_are_passed_over(tmp_path: Path) -> None:
    table = read_table([write(tmp_path / "a.csv", "\ufeff text ,label,,\r\nx,y,,\r\n")], COLUMNS)
    assert table.columns == {"text": ["x"], "label": ["y"]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("sentence,Class", "no (column|key) 'text' .did you mean 'sentence'.*task.text=sentence"),
        ("text,labels", "no (column|key) 'label' .did you mean 'labels'.*task.label=labels"),
        ("text,target", "did you mean 'target'.*task.label=target"),
        ("text,Category", "did you mean 'Category'.*task.label=Category"),
        ("text,lable", "did you mean 'lable'"),
        ("text,xyz", "choose from: text, xyz"),
    ],
)
def test_a_column_of_another_name_is_suggested(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_table([write(tmp_path / "a.csv", f"{header}\nx,y\n")], COLUMNS)
    keys = header.split(",")
    with pytest.raises(UserError, match=said):
        read_table([write(tmp_path / "a.jsonl", json.dumps(dict.fromkeys(keys, "x")) + "\n")], COLUMNS)


QUOTED = ['He said "no"', "a\tb", "two\nlines", 'both "x"\nand', '"', '""', "plain", '"all of it"', 'ends"\n\nso']


@pytest.mark.parametrize("order", [("text", "label"), ("label", "text"), ("id", "text", "label")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotes_of_a_tsv_are_read_as_csv_writes_them(tmp_path: Path, order: tuple[str, ...], quoting: int) -> None:
    """pandas' to_csv(sep="\\t") writes by csv, with these settings."""
    rows = [[text if name == "text" else f"{name}{n}" for name in order] for n, text in enumerate(QUOTED)]
    with open(tmp_path / "a.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n").writerows([order, *rows])  # type: ignore[arg-type]
    assert fields_of(tmp_path / "a.tsv") == [list(order), *rows]


def test_lone_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    rows = [
        ['"Hello', "a"], ['5" disk', "b"], ['world"', "c"], ['"Yes"', "d"], ['"Yes" he said', "e"], ['"', "f"],
        ["it's", '"'], ['a "b" c', "g"], ['"a" and "b"', "h"], ['""x', "i"], ['x""', '"lone'], ["last", "z"],
    ]  # fmt: skip
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert fields_of(path)[1:] == rows
    assert read_table([path], COLUMNS).locations[-1][1] == len(rows) + 1
    write(tmp_path / "pairs.tsv", "".join("\t".join(row) + "\n" for row in rows) + '"say ""so"""\t"CC\nBY"\n')
    assert [list(pair) for pair in iter_pairs([tmp_path / "pairs.tsv"])] == [*rows, ['say "so"', "CC\nBY"]]


def test_lines_that_quotes_might_join_are_looked_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + '"x\ty\n' * 20_000 + '"open\n')
    started = time.process_time()
    found = fields_of(path)
    assert (len(found), found[1], found[-1]) == (20_002, ['"x', "y"], ['"open'])
    assert time.process_time() - started < 2  # and not their number squared


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_field_longer_than_csv_reads_by_itself(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, mark = csv.field_size_limit(), "\t" if name == "a.tsv" else ","
    text = 'a "long"\ntext, ' * 20_000
    with open(tmp_path / name, "w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows([("text", "label"), (text, "y"), ("short", "z")])
    assert read_table([tmp_path / name], COLUMNS).columns == {"text": [text, "short"], "label": ["y", "z"]}
    assert csv.field_size_limit() == before
    reading = read_delimited(File(tmp_path / name))
    next(reading)
    reading.close()
    monkeypatch.setenv("HEADWAY_LIMIT_LINE", "200000")
    if name == "a.csv":
        with pytest.raises(UserError, match=r"line .* is in a longer field, more than HEADWAY_LIMIT_LINE=200000"):
            fields_of(tmp_path / name)
    else:
        assert fields_of(tmp_path / name)[1] == ['"a ""long""']  # as it stands: it has too few columns
    assert csv.field_size_limit() == before


def test_samples_that_are_held_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    keys, named = ["a", "b", "c", "b", "b"], np.array([1, 1, 1, 3, 1], np.uint8)
    sides = split_by_text(keys, named, SplitConfig(0.0, 0.0))
    assert (sides.removed, sides["train"].tolist()) == (2, [0, 2])
    assert "dropped 2 of 4 training samples that are also in validation or test files" in caplog.text
    caplog.clear()
    assert split_by_text(keys[:3], named[:3], SplitConfig(0.3, 0.3)).removed == 0
    assert not caplog.text


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["a", "b"], ["a", "b"]),
        (["caf\u00e9", "cafe\u0301", "x"], ["caf\u00e9", "caf\u00e9", "x"]),
        (["pos", " pos", "pos\u00a0", "\ufeffpos", "neg"], ["pos", "pos", "pos", "pos", "neg"]),
        (["1", "1.0", "2.00", "1.5"], ["1", "1", "2.00", "1.5"]),
        (["1.0", "0.0"], ["1.0", "0.0"]),
        (["True", "true", "FALSE", "False", "1"], ["true", "true", "false", "false", "1"]),
        (["1.1", "1.10", "01", "1"], ["1.1", "1.10", "01", "1"]),
        (["Pos", "pos"], ["Pos", "pos"]),
    ],
)
def test_spellings_of_a_label_are_one(given: list[str], joined: list[str], caplog: pytest.LogCaptureFixture) -> None:
    found = merge_spellings(given)
    assert found.labels == joined
    assert bool(found.notes) == (len(set(given)) > len(set(joined)))
    assert bool(found.notes) == ("labels that differ only in formatting were merged" in caplog.text)
    assert merge_spellings(found.labels) == (joined, ())


def test_labels_keep_the_spelling_of_a_run() -> None:
    assert merge_spellings(["1.0", "2", "x\u00a0"], ("1", "2", "x")).labels == ["1", "2", "x"]
    assert merge_spellings(["1", "1.0"], ("1", "1.0")).labels == ["1", "1.0"]  # of a run that has both
