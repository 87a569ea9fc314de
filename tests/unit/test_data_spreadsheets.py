"""Workbooks as tables, and tables without a header."""

from __future__ import annotations

import datetime
import io
import zipfile
from pathlib import Path

import pytest

from headway.data import read_table
from headway.data.input_files import File, find_files
from headway.data.table_files import read_table_rows
from headway.domains.text.recipes import shakespeare
from headway.errors import UserError

COLUMNS = {"text": "text", "label": "label"}


def refusal(path: Path, columns: dict[str, str] = COLUMNS) -> str:
    with pytest.raises(UserError) as told:
        read_table([path], columns)
    return str(told.value)


@pytest.fixture
def workbook(tmp_path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    for row in (
        ["text", "label", "when"],
        ["a red one, “quoted”", 1, datetime.date(2012, 1, 1)],
        [],
        ["a blue one\nin two lines", 2.0, datetime.datetime(2012, 1, 2, 3, 4)],
        ["true", True, None],
    ):
        book.active.append(row)
    book.create_sheet("notes").append(["nothing"])
    book.save(tmp_path / "book.xlsx")
    return tmp_path / "book.xlsx"


def test_the_first_sheet_is_read_like_a_csv(workbook: Path) -> None:
    found = read_table([workbook], COLUMNS)
    assert found.columns == {
        "text": ["a red one, “quoted”", "a blue one\nin two lines", "true"],
        "label": ["1", "2", "true"],
    }
    assert found.location(1) == f"{workbook}, line 4"
    times = [row.values["when"] for row in read_table_rows([workbook])]
    assert times == ["2012-01-01", "2012-01-02 03:04:00", ""]
    assert [str(file) for file in find_files(workbook.parent, (".csv", ".xlsx"))] == [str(workbook)]


def test_a_workbook_that_expands_without_end_or_is_none_is_refused(
    workbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_LIMIT_WHOLE", "2000")
    assert "bytes of memory, more than HEADWAY_LIMIT_WHOLE=2000 allows" in refusal(workbook)
    monkeypatch.delenv("HEADWAY_LIMIT_WHOLE")
    whole = workbook.read_bytes()
    for damaged in (b"text,label\n", whole[: len(whole) // 2], b"PK\x03\x04" + bytes(50)):
        workbook.write_bytes(damaged)
        assert "book.xlsx is damaged or not .xlsx" in refusal(workbook)
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "aaaaaaaaaa"}">' for n in range(9))
    entities = (b"<worksheet", f"<!DOCTYPE worksheet [{lines}]><worksheet".encode()), (b"a red one", b"&e8;")
    workbook.write_bytes(_changed(whole, *entities))
    assert "book.xlsx is damaged or not .xlsx" in refusal(workbook)
    workbook.write_bytes(_changed(whole, (b'<row r="4"', b'<row r="99999999999"')))
    assert "book.xlsx has a row beyond 1,048,576, the maximum of a sheet" in refusal(workbook)


def _changed(workbook: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    """The workbook with other bytes in its first sheet."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook)) as before, zipfile.ZipFile(found, "w") as after:
        for name in before.namelist():
            data = before.read(name)
            for old, new in changes if name.endswith("sheet1.xml") else ():
                assert old in data
                data = data.replace(old, new, 1)
            after.writestr(name, data)
    return found.getvalue()


def test_without_the_package_the_way_to_csv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "book.xlsx"
    path.write_bytes(b"PK")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    assert refusal(path).endswith("pip install 'headway[data]', or save the sheet as .csv (UTF-8)")
    for name in ("book.xls", "book.ods"):
        (tmp_path / name).write_bytes(b"PK")
        assert f"{tmp_path / name} is a spreadsheet; save it as .csv (UTF-8)" in refusal(tmp_path / name)
    recipe = shakespeare()
    with pytest.raises(UserError, match=r"is a spreadsheet; save it as \.csv"):
        recipe.task.open(recipe, [path], tmp_path / "run")


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        (["I lost my card,lost_card", "where is it?,arrival", "lost again,lost_card"], "text,label"),
        (["lost_card;I lost my card", "arrival;where is it?", "lost_card;it is lost again"], "label,text"),
        (["I lost my card and would like to have another one soon,a", "where is it?,b"], "text,label"),
        (["one,yes,17", "two,no,18", "three,yes,19"], "text,label,column3"),
    ],
)
def test_a_table_that_starts_with_a_row_is_refused_with_a_header_that_fits(
    rows: list[str], header: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert f"has no header: its first line is {rows[0].replace(';', ',')[:4]!r}"[:-2] in refusal(path)
    assert refusal(path).endswith(f"add a line of column names above it, such as {header}")
    path.write_text("\n".join([header.replace(",", ";" if ";" in rows[0] else ","), *rows]) + "\n", encoding="utf-8")
    assert len(read_table([path], COLUMNS)) == len(rows)


def test_a_header_of_other_names_is_still_a_header(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("review,stars\ngood,5\nbad,1\n", encoding="utf-8")
    assert "has no column 'text' (did you mean 'review'?)" in refusal(path)
    path.write_text("a,b\ngood,5\nbad,1\n", encoding="utf-8")
    assert "has no column 'text'" in refusal(path)


def test_files_of_tables_stand_for_themselves(tmp_path: Path) -> None:
    assert File(tmp_path / "a.XLSX").kind == ".xlsx"
