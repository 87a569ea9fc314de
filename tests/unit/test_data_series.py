"""Tables of series: which columns are what, times in equal steps, and one line for what cannot be used."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from headway.data.series import Calendar, Series, SeriesColumns, parse_time, read_series
from headway.errors import UserError

OPEN = SeriesColumns(None, None, None)


def read(
    folder: Path, text: str, fill: bool = False, columns: SeriesColumns = OPEN, name: str = "x.csv"
) -> list[Series]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_series([folder / name], columns, fill)[0]


def calendar(folder: Path, times: list[str]) -> Calendar:
    (folder / "x.csv").write_text("time,v\n" + "".join(f"{time},1\n" for time in times), encoding="utf-8")
    return read_series([folder / "x.csv"], OPEN, False)[1]


HOURS = [f"2024-03-01T{hour:02}:00:00+02:00" for hour in range(22, 24)] + ["2024-03-02T00:00:00+02:00"]
DAYS = ["2024-02-27", "2024-02-28", "2024-02-29"]
ENDS = ["2023-12-31", "2024-01-31", "2024-02-29"]


@pytest.mark.parametrize(
    ("times", "season", "after"),
    [
        (HOURS, 24, "2024-03-02T01:00:00+02:00"),
        (["2024-03-01 10:00", "2024-03-01 10:30"], 48, "2024-03-01 11:00:00"),
        (["2024-03-01 10:00", "2024-03-01 10:01"], 60, "2024-03-01 10:02:00"),
        (DAYS, 7, "2024-03-01"),
        (["2024-02-19", "2024-02-26"], 52, "2024-03-04"),
        (ENDS, 12, "2024-03-31"),
        (["2024-01-15", "2024-02-15"], 12, "2024-03-15"),
        (["2024-11", "2024-12"], 12, "2025-01"),
        (["2024-01-01", "2024-04-01"], 4, "2024-07-01"),
        (["2024Q3", "2024Q4"], 4, "2025Q1"),
        (["2020-01-01", "2021-01-01"], 1, "2022-01-01"),
        (["2019", "2020"], 1, "2021"),
        (["1959.0", "1960.0"], 1, "1961"),
        (["1949.917", "1950", "1950.083"], 12, "1950-03"),
        (["1960.25", "1960.5", "1960.75"], 4, "1961-01"),
        (["30.12.1999", "31.12.1999"], 7, "01.01.2000"),
        (["31.01.2024", "29.02.2024"], 12, "31.03.2024"),
        (["31.12.1999 22:00", "31.12.1999 23:00"], 24, "01.01.2000 00:00:00"),
        (["2012/01/01", "2012/01/02"], 7, "2012/01/03"),
    ],
)
def test_times_tell_the_season_and_what_comes_next(tmp_path: Path, times: list[str], season: int, after: str) -> None:
    found = calendar(tmp_path, times)
    series = read_series([tmp_path / "x.csv"], OPEN, False)[0][0]
    assert found.season_length == season
    assert found.format(series.start + len(times) * found.step) == after


def test_a_time_is_read_as_datetime_reads_it() -> None:
    assert parse_time("2024-05-01T12:00:00Z") == ("microsecond", 1714564800_000000)
    assert parse_time("2024-13") is parse_time("soon") is parse_time("2024Q5") is None
    assert dt.datetime.fromtimestamp(1714564800, dt.UTC).hour == 12


def test_wide_and_long_tables_hold_the_same_series(tmp_path: Path) -> None:
    wide = read(tmp_path, "when;b;a\n2024-01-02;2.5;20\n2024-01-01;1;10\n2024-01-03;3;30\n")
    long = "item,when,amount\n" + "".join(f"{s},2024-01-0{d},{v}\n" for s, d, v in [
        ("b", 1, 1), ("a", 2, 20), ("a", 1, 10), ("b", 3, 3), ("b", 2, 2.5), ("a", 3, 30),
    ])  # fmt: skip
    rows = '{"time": 2001, "b": 1, "a": 10}\n{"time": 2002, "b": 2.5, "a": 20}\n{"time": 2003, "b": 3, "a": 30}\n'
    for found in (wide, read(tmp_path, long), read(tmp_path, rows, name="x.jsonl")):
        assert {one.name: one.values.tolist() for one in found} == {"b": [1, 2.5, 3], "a": [10, 20, 30]}


def test_columns_can_be_named(tmp_path: Path) -> None:
    text = "date,made,x,y\n2024-01-01,2020-01-01,1,5\n2024-01-02,2021-01-01,2,6\n"
    found = read(tmp_path, text, columns=SeriesColumns("made", None, "x"))
    assert [(one.name, one.values.tolist()) for one in found] == [("x", [1, 2])]


def test_what_is_missing_is_refused_or_put_on_a_line(tmp_path: Path) -> None:
    text = "day,v,w\n2024-01-01,1,\n2024-01-02,,5\n2024-01-04,4,6\n2024-01-05,NaN,7\n"
    lacking = (
        r"'v' lacks 2 values, the first at 2024-01-02, the series 'w' lacks 1 values, .*; add them, or set task.fill"
    )
    with pytest.raises(UserError, match=lacking):
        read(tmp_path, text)
    v, w = read(tmp_path, text, fill=True)  # edges that are missing are left out
    assert v.values.tolist() == [1, 2, 3, 4]
    assert v.seen.tolist() == [True, False, False, True]
    assert w.values.tolist() == [5, 5.5, 6, 7]
    assert w.start > v.start


GERMAN = "Datum;Kurs;Menge\n30.12.1999;66,19;1.200\n31.12.1999;1.066,5;1.300\n01.01.2000;67;1.400,5\n"


def test_decimal_commas_and_dots_between_thousands(tmp_path: Path) -> None:
    price, amount = read(tmp_path, GERMAN)
    assert price.values.tolist() == [66.19, 1066.5, 67]
    assert amount.values.tolist() == [1200, 1300, 1400.5]
    (one,) = read(tmp_path, 'time;v\n2001;"1,234,567"\n2002;"12,345.5"\n2003;7\n')
    assert one.values.tolist() == [1234567, 12345.5, 7]
    with pytest.raises(UserError, match=r"'v' is '1,234'"):  # either
        read(tmp_path, "time;v\n2001;1,234\n2002;2,345\n")


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    rows = [f"{2000 + n},{n if n % 3 else 'x' + str(n)},{n if n != 5 else '?'}" for n in range(20)]
    rows[4] = "soon,1,2"
    with pytest.raises(UserError) as told:
        read(tmp_path, "time,a,b\n" + "\n".join(rows) + "\n")
    said = str(told.value)
    for part in (
        "line 6: 'time' is 'soon'",
        "line 2: 'a' is 'x0'",
        "line 5: 'a' is 'x3'",
        "and 4 more",
        "write a number",
    ):
        assert part in said
    assert said.count("write all times in one format") == 1
    with pytest.raises(UserError, match=r"'a' has no values; remove it\. the series 'b' has two values at 2001"):
        read(tmp_path, "time,a,b\n2001,,1\n2001,,2\n2003,,3\n")


def test_a_column_of_text_names_series_or_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "day,temperature,wind,weather\n2024-01-01,1,5,rain\n2024-01-02,2,6,sun\n2024-01-03,3,7,rain\n"
    assert [one.name for one in read(tmp_path, text)] == ["temperature", "wind"]
    assert "ignoring column 'weather'; if it holds series names, set task.series=weather" in caplog.text
    days = ("2024-01-01,Ulm,sun,1", "2024-01-01,Bonn,sun,2", "2024-01-02,Ulm,sun,3", "2024-01-02,Bonn,rain,4")
    long = "day,town,weather,wind\n" + "\n".join(days) + "\n"
    assert {one.name: one.values.tolist() for one in read(tmp_path, long)} == {"Ulm": [1, 3], "Bonn": [2, 4]}
    counted = "rownames,time,value\n1,1950.0,112\n2,1950.083,118\n"
    assert [one.name for one in read(tmp_path, counted)] == ["value"]
    numbered = "id,day,wind\n1,2024-01-01,5\n2,2024-01-02,6\n"
    assert [one.name for one in read(tmp_path, numbered)] == ["wind"]


BAD = {
    "is the time column; name it time, or set task.time": "a,b\n1,2\n3,4\n",
    "which is not a time": "time,b\n2024-01-01,2\nlater,4\n",
    "unlike the first": "time,b\n2024-01-01,2\n2024,4\n",
    "line 3: 'b' is 'many'; write a number": "time,b\n2024-01-01,2\n2024-01-02,many\n",
    "is 'inf'": "time,b\n2024-01-01,2\n2024-01-02,inf\n",
    "unequal time steps: from 2024-01-01 to 2024-01-03": "time,b\n2024-01-01,2\n2024-01-03,3\n2024-01-04 12:00,4\n",
    "two values at 2024-01-01": "time,b\n2024-01-01,2\n2024-01-01,3\n",
    "has the values of the series": "time,series,b,c\n1,x,2,3\n2,x,4,5\n",
    "has no values": "time,b,c\n1,2,\n2,3,\n",
    "every series has one value": "time,b\n2024-01-01,2\n",
    "there are no rows": "time,b\n",
    "too many to fill": "time,b\n2024-01-01,2\n2024-01-02,3\n2024-03-02,3\n",
}


@pytest.mark.parametrize("said", BAD)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, said: str) -> None:
    with pytest.raises(UserError) as told:
        read(tmp_path, BAD[said])
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'tame' \(task.time\); did you mean 'time'"):
        read(tmp_path, "time,b\n1,2\n2,3\n", columns=SeriesColumns("tame", None, None))


def test_years_after_9999_cannot_be_written() -> None:
    with pytest.raises(UserError, match="request fewer steps"):
        Calendar("month", 12, "2024-01-01").format(200_000)


def test_many_rows_are_read_in_seconds(tmp_path: Path) -> None:
    times = np.arange("2000-01-01", "2000-02-05", dtype="datetime64[m]").astype(str).tolist()
    (one,) = read(tmp_path, "time,v\n" + "\n".join(f"{time},1" for time in times))
    assert len(one.values) == 35 * 1440
