"""Users' tables: .csv, .tsv, .jsonl and .xlsx files with named columns, and CoNLL files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.data.columns import USES, check_header, likely, suggestion
from headway.data.delimited import delimited
from headway.data.files import File, find_files, honoured, lines
from headway.data.splits import side_number
from headway.errors import UserError
from headway.parsing import DuplicateKeyError, parse_json
from headway.received import place_of

_LONG, _NESTED = 1 << 20, 1 << 20  # characters, and lists and objects (about 100 bytes each) in longer lines


def objects(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl with their line numbers. Blank lines are skipped."""
    for number, line in enumerate(lines(file), 1):
        if line.strip():
            yield number, _parsed_line(file, number, line)


def _parsed_line(file: File, number: int, line: str) -> dict[str, Any]:
    if len(line) > _LONG and line.count("[") + line.count("{") > _NESTED:
        raise UserError(
            f"{file}, line {number} contains over {_NESTED:,} lists and objects; write one object per line"
        )
    try:
        row = parse_json(line)
    except DuplicateKeyError as error:
        raise UserError(f"{file}, line {number} has {error}; keep one of them") from error
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{file}, line {number} is not JSON ({reason}); write one object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number} is a JSON {type(row).__name__}; write one object per line")
    return row


def text_of(file: File, number: int, row: dict[str, Any], key: str) -> str:
    """The string under a key; UserError if the key is missing or its value is not a string."""
    if key not in row:
        raise UserError(f"{file}, line {number} has no key {key!r}; {suggestion(key, list(row))}")
    return sound_text(file, number, key, row[key])


def sound_text(file: File, number: int, key: str, value: Any) -> str:
    """`value` if it is a string that can be encoded; otherwise a UserError."""
    if not isinstance(value, str):
        raise UserError(f"{file}, line {number}: {key!r} is {value!r}; write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can contain half a surrogate pair, which is not a character
        raise UserError(
            f"{file}, line {number}: {key!r} has half a surrogate pair at character {error.start}; correct the line"
        ) from error
    return value


CONLL_KINDS = (".conll", ".txt", ".tsv", ".bio", ".iob", ".train", ".dev", ".test", ".testa", ".testb")
_SIDES = {".testa": "validation", ".testb": "test"}  # file names of CoNLL-2003
_DOCUMENT = "-DOCSTART-"
_COMMENT = re.compile(r"# ?\w+ ?= ")  # of CoNLL-U: "# text = ..."


class Tagged(NamedTuple):
    """A sentence: its words and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class TaggedText(NamedTuple):
    """Sentences, and the splits that their files' names state, uint8 [N]."""

    sentences: list[Tagged]
    named: np.ndarray


def read_conll(paths: Sequence[Path | str]) -> TaggedText:
    """Read the sentences of all files. UserError for a line with one column, invalid UTF-8, or no sentences at all.

    Columns are separated by TABs, or by spaces in lines without TABs. Document starts (-DOCSTART-) and CoNLL-U comments
    are skipped.
    """
    if not paths:
        raise UserError("no files of tagged text; pass at least one")
    found = [file for path in paths for file in find_files(place_of(path), CONLL_KINDS)]
    files = honoured([replace(file, side=file.side or _SIDES.get(file.kind)) for file in found])
    sentences: list[Tagged] = []
    named: list[int] = []
    for file in files:
        for sentence in _sentences(file):
            sentences.append(sentence)
            named.append(0 if file.side is None else side_number(file.side))
    if not sentences:
        raise UserError(
            f"{', '.join(map(str, files[:3]))}: there are no sentences; write one word and its tag per line"
        )
    return TaggedText(sentences, np.array(named, np.uint8))


def _sentences(file: File) -> Iterator[Tagged]:
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(lines(file), 1):
        if _COMMENT.match(line):
            continue
        if line.strip() and not line.startswith(_DOCUMENT):
            rows.append(_columns(file, number, line))
        elif rows:
            yield Tagged(*map(tuple, zip(*rows)))
            rows = []
    if rows:
        yield Tagged(*map(tuple, zip(*rows)))


def _columns(file: File, number: int, line: str) -> tuple[str, str]:
    parts = line.split("\t") if "\t" in line else line.split()
    word, tag = parts[0].strip(), parts[-1].strip()
    if len(parts) < 2 or not word or not tag:
        raise UserError(
            f"{file}, line {number}: {line!r} is not a word with a tag; write a word, a space or TAB, and the tag last"
        )
    return word, tag


_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_LONG_NAME = 40  # characters; column names are shorter
_LOOKED_AT = 200  # rows checked to detect a missing header

TABLE_KINDS = (".csv", ".tsv", ".jsonl", ".xlsx")


@dataclass(frozen=True)
class Table:
    """Text columns by use, all [N]; `named_splits` uint8 [N] is the split that the file's name states.

    `locations` are the file and line of each row, for messages.
    """

    columns: dict[str, list[str]]
    named: np.ndarray
    places: list[tuple[File, int]]

    def __len__(self) -> int:
        return len(self.places)

    def select(self, rows: np.ndarray) -> Table:
        """A table of these rows, in this order."""
        chosen = rows.tolist()
        columns = {use: [values[row] for row in chosen] for use, values in self.columns.items()}
        return Table(columns, self.named[rows], [self.places[row] for row in chosen])

    def place(self, row: int) -> str:
        file, line = self.places[row]
        return f"{file}, line {line}"


def read_table(
    paths: Sequence[Path | str],
    columns: Mapping[str, str],
    optional: Sequence[str] = (),
    remedy: str = "set task.{use}=NAME",
    answer: str | None = None,
) -> Table:
    """Read the rows of all files; `columns` maps a column's use ("text", "label") to its name in the files.

    `optional` columns are left out if the first file lacks them. The `target` column may have missing values (returned
    as empty strings) and lists (returned as JSON). It may also be several 0/1 columns with comma-separated names or,
    without a column "label", all 0/1 columns: their names become a JSON list.
    UserError for a missing column (with the nearest name and the `remedy`), a row of another length, an empty value,
    invalid UTF-8, or no rows at all.
    """
    if not paths:
        raise UserError("no files; pass at least one .csv, .tsv, .jsonl or .xlsx")
    files = honoured([file for path in paths for file in find_files(place_of(path), TABLE_KINDS)])
    wanted = {use: name for use, name in columns.items() if use not in optional or name in _header(files[0])}
    flags = () if answer is None else _flags(files[0], wanted, answer)
    needed = {use: name for use, name in wanted.items() if use != answer or not flags} | {flag: flag for flag in flags}
    table = Table({use: [] for use in wanted}, np.zeros(0, np.uint8), [])
    named: list[int] = []
    for file in files:
        side = 0 if file.side is None else side_number(file.side)
        for line, row in _rows(file, needed, remedy):
            for use, values in table.columns.items():
                if use == answer:
                    found = _flagged(file, line, flags, row) if flags else _answer(file, line, wanted[use], row)
                else:
                    found = _text(file, line, wanted[use], row[wanted[use]])
                values.append(found)
            table.places.append((file, line))
            named.append(side)
    if not named:
        raise UserError(f"{', '.join(map(str, files[:3]))}: there are no rows; add some")
    return Table(table.columns, np.array(named, np.uint8), table.places)


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def _flags(file: File, wanted: Mapping[str, str], answer: str) -> tuple[str, ...]:
    """The 0/1 columns that together encode a row's labels; empty if the label column exists."""
    name, header = wanted[answer], _header(file)
    if name in header:
        return ()
    parts = tuple(part.strip() for part in name.split(","))
    if len(parts) > 1 and any(part in header for part in parts):
        lost = next((part for part in parts if part not in header), None)
        if lost is not None:
            raise UserError(f"{file} has no column {lost!r} ({suggestion(lost, header)}); correct task.{answer}")
        return parts
    if name != answer:  # a column that the user named
        return ()
    others = [column for column in header if column and column not in wanted.values()]
    for _, row in _rows(file, {}, ""):
        others = [column for column in others if _plain(row.get(column)) in _FLAGS]
        if len(others) < 2:
            return ()
    return tuple(others)


def _flagged(file: File, line: int, flags: Sequence[str], row: Mapping[str, Any]) -> str:
    """The names of the columns that are 1, as a JSON list; an empty string if all are empty."""
    values = {flag: _plain(row[flag]) for flag in flags}
    if not any(values.values()):
        return ""
    wrong = next((flag for flag in flags if values[flag] not in _FLAGS), None)
    if wrong is not None:
        raise UserError(f"{file}, line {line}: {wrong!r} is {row[wrong]!r}; write 0 or 1")
    return json.dumps([flag for flag in flags if _FLAGS[values[flag]]], ensure_ascii=False)


def _answer(file: File, line: int, name: str, row: Mapping[str, Any]) -> str:
    """A value that may be missing, or a list of strings or numbers."""
    value = row[name]
    if isinstance(value, list):
        if not all(isinstance(item, (str, int, float)) for item in value):
            raise UserError(f"{file}, line {line}: {name!r} is a list with items that are not strings; write strings")
        return json.dumps(value, ensure_ascii=False)
    return _text(file, line, name, value) if _plain(value) else ""


def _plain(value: Any) -> str:
    """A value in lower case, empty if missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip().lower()


class TableRow(NamedTuple):
    """A row of a file with any columns: values by name, strings or JSON values."""

    file: File
    line: int
    values: Mapping[str, Any]

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


def table_rows(paths: Sequence[Path | str]) -> Iterator[TableRow]:
    """The rows of all files, with any columns. UserError for a row of another length, invalid UTF-8, or no rows at all.
    """
    found = False
    for file in (file for path in paths for file in find_files(place_of(path), TABLE_KINDS)):
        for line, values in _rows(file, {}, ""):
            found = True
            yield TableRow(file, line, values)
    if not found:
        raise UserError(f"{', '.join(map(str, paths)) or 'no files'}: there are no rows; add some")


def _header(file: File) -> list[str]:
    """The column names of a file."""
    if file.kind == ".jsonl":
        return next((list(row) for _, row in objects(file)), [])
    return [name.strip() for name in next(delimited(file), (0, []))[1]]


def _rows(file: File, wanted: Mapping[str, str], missing: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each row as values by name, with its line number."""
    if file.kind == ".jsonl":
        for line, row in objects(file):
            _check_names(f"{file}, line {line}", "key", row, wanted, missing)
            yield line, row
        return
    rows = delimited(file)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not all(name in header for name in wanted.values()) and _is_row(file, header):
        raise UserError(
            f"{file} has no header: its first line is {', '.join(header)[:60]!r}; add a line of column names above it, "
            f"such as {_named(file, header, wanted)}"
        )
    check_header(str(file), header)
    _check_names(str(file), "column", header, wanted, missing)
    for line, values in rows:
        if len(values) != len(header):
            quotes = "put quotes around texts that contain the separator, such as commas"
            others = {".tsv": "write one TAB between columns", ".xlsx": "clear the cells to the right of the header"}
            remedy = others.get(file.kind, quotes)
            raise UserError(f"{file}, line {line} has {len(values)} columns but the header has {len(header)}; {remedy}")
        yield line, dict(zip(header, values))


def _is_row(file: File, header: Sequence[str]) -> bool:
    """Whether the first line of a table is a data row: one of its values repeats in its column, or it has no common
    column name and one value is a number or a long text.
    """
    rows = [row for _, row in islice(delimited(file), 1, _LOOKED_AT) if len(row) == len(header)]
    if any(name and name in (row[place].strip() for row in rows) for place, name in enumerate(header)):
        return True
    usual = any(likely(use, header) is not None for use in USES)
    return not usual and any(_NUMBER.fullmatch(name) or len(name) > _LONG_NAME for name in header)


def _named(file: File, header: Sequence[str], wanted: Mapping[str, str]) -> str:
    """A plausible header: the longest column is the text, and the one with the fewest values is the label."""
    rows = [row for _, row in islice(delimited(file), _LOOKED_AT) if len(row) == len(header)]
    columns = [[row[place] for row in rows] for place in range(len(header))]
    names = [f"column{number}" for number in range(1, len(header) + 1)]
    free = sorted(range(len(header)), key=lambda place: -sum(map(len, columns[place])))
    uses = sorted(wanted, key="label".__eq__)
    for use in uses:
        if use == "label" and free:
            free.sort(key=lambda place: len(set(columns[place])))
        if free:
            names[free.pop(0)] = wanted[use]
    return ",".join(names)


def _check_names(
    where: str, what: str, found: Sequence[str] | Mapping[str, Any], wanted: Mapping[str, str], missing: str
) -> None:
    for use, name in wanted.items():
        if name not in found:
            meant = likely(use, found) or "NAME"
            known = suggestion(name, list(found), use)
            remedy = missing.format(use=use).replace("NAME", meant)
            raise UserError(f"{where} has no {what} {name!r} ({known}); {remedy}")


def _text(file: File, line: int, name: str, value: Any) -> str:
    """A value as a string; JSON numbers and booleans as they are written."""
    text = sound_text(file, line, name, json.dumps(value) if isinstance(value, (int, float)) else value)
    if not text.strip():
        raise UserError(f"{file}, line {line}: {name!r} is empty; fill it in, or remove the line")
    return text
