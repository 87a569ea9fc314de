"""Users' tables: .csv, .tsv, .jsonl and .xlsx files with named columns, and CoNLL files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.data.delimited import read_delimited
from headway.data.input_files import File, find_files, read_lines, resolve_named_splits
from headway.data.splits import split_code
from headway.errors import UserError, nearest
from headway.io.files import user_path
from headway.io.json_files import DuplicateKeyError, parse_json

# Names that published data sets use for a column, the most common first.
_SYNONYMS = {
    "label": (
        "label", "labels", "class", "target", "category", "sentiment", "intent", "classes", "categories", "class_name",
        "label_text", "tag", "topic", "emotion", "rating", "stars", "score", "y", "gold", "gold_label", "coarse_label",
    ),
    "text": (
        "text", "texts", "sentence", "review", "content", "document", "body", "comment", "message", "tweet", "question",
        "sentence1", "text1", "premise", "question1", "utterance", "query", "title", "description", "input", "string",
    ),
    "text2": ("text2", "sentence2", "hypothesis", "question2", "answer", "passage", "positive", "text_b", "target"),
    "query": ("query", "question", "anchor", "search_query", "text", "sentence1", "title"),
    "document": ("document", "passage", "answer", "doc", "context", "product", "text2", "sentence2"),
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "audio", "img", "image_path"),
    "caption": ("caption", "captions", "text", "description", "title", "alt", "sentence"),
    "source": ("source", "src", "input", "text", "original"),
    "target": ("target", "tgt", "translation", "output", "label", "reference"),
}  # fmt: skip
COLUMN_USES = tuple(_SYNONYMS)


def check_column_names(source: str, names: Sequence[str], noun: str = "columns") -> None:
    """UserError if two columns have the same name, with both column numbers. Columns without a name, which some
    programs append, are ignored.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name and name in first:
            raise UserError(
                f"{source} has two {noun} named {name!r} ({first[name]} and {number}); rename or remove one of them"
            )
        first[name] = number


def guess_column(use: str, names: Iterable[str]) -> str | None:
    """The column that is probably meant by `use` ("label", ...), ignoring case; None if there is no candidate."""
    by_name = {name.strip().lower().replace(" ", "_"): name for name in names}
    return next((by_name[synonym] for synonym in _SYNONYMS.get(use, ()) if synonym in by_name), None)


def suggest_column(name: str, names: Sequence[str], use: str = "") -> str:
    """The end of a message about a missing column: the name that the user may have meant."""
    if not names:
        return "it is empty"
    candidate = guess_column(use or name, names)
    return nearest(name, names) if candidate is None else f"did you mean {candidate!r}?"


_LONG_LINE, _MAX_NESTED = 1 << 20, 1 << 20  # characters, and lists and objects (about 100 bytes each) in longer lines


def read_json_lines(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl with their line numbers. Blank lines are skipped."""
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        if len(line) > _LONG_LINE and line.count("[") + line.count("{") > _MAX_NESTED:
            raise UserError(
                f"{file}, line {number} contains over {_MAX_NESTED:,} lists and objects; write one object per line"
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
        yield number, row


def check_text(file: File, number: int, key: str, value: Any) -> str:
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
_CONLL_SPLITS = {".testa": "validation", ".testb": "test"}  # file names of CoNLL-2003
_DOCUMENT_START = "-DOCSTART-"
# Of CoNLL-U ("# text = ...", "# newdoc id = ...") and MultiCoNER ("# id ...").
_COMMENT = re.compile(r"# ?[\w.:-]+( [\w.:-]+)* ?= |# ?(newdoc|newpar|id)\b")


class TaggedSentence(NamedTuple):
    """A sentence: its words and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class TaggedCorpus(NamedTuple):
    """Sentences, and the splits in their file names, uint8 [N]."""

    sentences: list[TaggedSentence]
    named_splits: np.ndarray


def read_conll(paths: Sequence[Path | str]) -> TaggedCorpus:
    """Read the sentences of all files. UserError for a line with one column, invalid UTF-8, or no sentences at all.

    Columns are separated by TABs, or by spaces in lines without TABs. Document starts (-DOCSTART-) and CoNLL-U comments
    are skipped.
    """
    if not paths:
        raise UserError("no tagged text files; pass at least one")
    all_files = [file for path in paths for file in find_files(user_path(path), CONLL_KINDS)]
    files = resolve_named_splits(
        [replace(file, named_split=file.named_split or _CONLL_SPLITS.get(file.kind)) for file in all_files]
    )
    sentences: list[TaggedSentence] = []
    codes: list[int] = []
    for file in files:
        for sentence in _sentences(file):
            sentences.append(sentence)
            codes.append(0 if file.named_split is None else split_code(file.named_split))
    if not sentences:
        raise UserError(
            f"{', '.join(map(str, files[:3]))}: there are no sentences; write one word and its tag per line"
        )
    return TaggedCorpus(sentences, np.array(codes, np.uint8))


def _sentences(file: File) -> Iterator[TaggedSentence]:
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(file), 1):
        if _COMMENT.match(line):
            continue
        if line.strip() and not line.startswith(_DOCUMENT_START):
            parts = line.split("\t") if "\t" in line else line.split()
            word, tag = parts[0].strip(), parts[-1].strip()
            if len(parts) < 2 or not word or not tag:
                raise UserError(
                    f"{file}, line {number}: {line!r} is not a word with a tag; write a word, a space or TAB, and the "
                    "tag last"
                )
            rows.append((word, tag))
        elif rows:
            yield TaggedSentence(*map(tuple, zip(*rows)))
            rows = []
    if rows:
        yield TaggedSentence(*map(tuple, zip(*rows)))


_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_MAX_NAME = 40  # characters; column names are shorter
_SAMPLE_ROWS = 200  # rows checked to detect a missing header

TABLE_TYPES = {  # extensions of tables, with their media types
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".jsonl": "application/jsonl",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
TABLE_KINDS = tuple(TABLE_TYPES)


@dataclass(frozen=True)
class Table:
    """Text columns by use, all [N]; `named_splits` uint8 [N] is the split in the file's name.

    `locations` are the file and line of each row, for messages.
    """

    columns: dict[str, list[str]]
    named_splits: np.ndarray
    locations: list[tuple[File, int]]

    def __len__(self) -> int:
        return len(self.locations)

    def select(self, rows: np.ndarray) -> Table:
        """A table of these rows, in this order."""
        indices = rows.tolist()
        columns = {use: [values[row] for row in indices] for use, values in self.columns.items()}
        return Table(columns, self.named_splits[rows], [self.locations[row] for row in indices])

    def location(self, row: int) -> str:
        file, line = self.locations[row]
        return f"{file}, line {line}"


class TableSample(NamedTuple):
    """The values of a row by use; its file and line; and the code of the split in the file's name (0: none)."""

    values: dict[str, str]
    file: File
    line: int
    named_split: int


def read_table(
    paths: Sequence[Path | str],
    columns: Mapping[str, str],
    optional: Sequence[str] = (),
    remedy: str | None = None,
    target: str | None = None,
) -> Table:
    """Read the rows of all files, as `iter_table` yields them."""
    table = Table({}, np.zeros(0, np.uint8), [])
    codes: list[int] = []
    for values, file, line, code in iter_table(paths, columns, optional, remedy, target):
        for use, text in values.items():
            table.columns.setdefault(use, []).append(text)
        table.locations.append((file, line))
        codes.append(code)
    return replace(table, named_splits=np.array(codes, np.uint8))


def iter_table(
    paths: Sequence[Path | str],
    columns: Mapping[str, str],
    optional: Sequence[str] = (),
    remedy: str | None = None,
    target: str | None = None,
) -> Iterator[TableSample]:
    """The rows of all files; `columns` maps a column's use ("text", "label") to its name in the files.

    `optional` columns are omitted if the first file lacks them. The `target` column may have missing values (returned
    as empty strings) and lists (returned as JSON). It may also be several 0/1 columns with comma-separated names or,
    without a column "label", all 0/1 columns: their names become a JSON list.
    UserError for missing columns (with the nearest names and the `remedy`, by default the option that sets them), a
    row of another length, an empty value, invalid UTF-8, or no rows at all.
    """
    files = table_files(paths)
    column_names = {use: name for use, name in columns.items() if use not in optional or name in _read_header(files[0])}
    flags = () if target is None else _flag_columns(files[0], column_names, target)
    required = {use: name for use, name in column_names.items() if use != target or not flags} | {
        flag: flag for flag in flags
    }
    has_rows = False
    for file in files:
        code = 0 if file.named_split is None else split_code(file.named_split)
        for line, row in _read_rows(file, required, remedy):
            values: dict[str, str] = {}
            for use, name in column_names.items():
                if use == target and flags:
                    values[use] = _labels_from_flags(file, line, flags, row)
                elif use == target:
                    values[use] = _target_value(file, line, name, row)
                else:
                    values[use] = _text_value(file, line, name, row[name])
            has_rows = True
            yield TableSample(values, file, line, code)
    if not has_rows:
        raise UserError(f"{', '.join(map(str, files[:3]))}: there are no rows; add some")


def table_files(paths: Sequence[Path | str]) -> list[File]:
    """The tables at paths, with the split in their names. UserError for no paths, and for files of other kinds."""
    if not paths:
        raise UserError("no files; pass at least one .csv, .tsv, .jsonl or .xlsx")
    return resolve_named_splits([file for path in paths for file in find_files(user_path(path), TABLE_KINDS)])


_FLAG_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def _flag_columns(file: File, column_names: Mapping[str, str], target: str) -> tuple[str, ...]:
    """The 0/1 columns that together encode a row's labels; empty if the label column exists."""
    name, header = column_names[target], _read_header(file)
    if name in header:
        return ()
    parts = tuple(part.strip() for part in name.split(","))
    if len(parts) > 1 and any(part in header for part in parts):
        missing = next((part for part in parts if part not in header), None)
        if missing is not None:
            raise UserError(
                f"{file} has no column {missing!r} ({suggest_column(missing, header)}); correct task.{target}"
            )
        return parts
    if name != target:  # a column that the user named
        return ()
    candidates = [column for column in header if column and column not in column_names.values()]
    for _, row in _read_rows(file, {}):
        candidates = [column for column in candidates if _normalized(row.get(column)) in _FLAG_VALUES]
        if len(candidates) < 2:
            return ()
    return tuple(candidates)


def _labels_from_flags(file: File, line: int, flags: Sequence[str], row: Mapping[str, Any]) -> str:
    """The names of the columns that are 1, as a JSON list; an empty string if all are empty."""
    values = {flag: _normalized(row[flag]) for flag in flags}
    if not any(values.values()):
        return ""
    invalid = next((flag for flag in flags if values[flag] not in _FLAG_VALUES), None)
    if invalid is not None:
        raise UserError(f"{file}, line {line}: {invalid!r} is {row[invalid]!r}; write 0 or 1")
    return json.dumps([flag for flag in flags if _FLAG_VALUES[values[flag]]], ensure_ascii=False)


def _target_value(file: File, line: int, name: str, row: Mapping[str, Any]) -> str:
    """A value that may be missing, or a list of strings or numbers."""
    value = row[name]
    if isinstance(value, list):
        if not all(isinstance(item, (str, int, float)) for item in value):
            raise UserError(f"{file}, line {line}: {name!r} is a list with items that are not strings; write strings")
        return json.dumps(value, ensure_ascii=False)
    return _text_value(file, line, name, value) if _normalized(value) else ""


def _normalized(value: Any) -> str:
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
    def location(self) -> str:
        return f"{self.file}, line {self.line}"


def read_table_rows(paths: Sequence[Path | str]) -> Iterator[TableRow]:
    """The rows of all files, with any columns. UserError for a row of another length, invalid UTF-8, or no rows."""
    has_rows = False
    for file in (file for path in paths for file in find_files(user_path(path), TABLE_KINDS)):
        for line, values in _read_rows(file, {}):
            has_rows = True
            yield TableRow(file, line, values)
    if not has_rows:
        raise UserError(f"{', '.join(map(str, paths)) or 'no files'}: there are no rows; add some")


def _read_header(file: File) -> list[str]:
    """The column names of a file."""
    if file.kind == ".jsonl":
        return next((list(row) for _, row in read_json_lines(file)), [])
    return [name.strip() for name in next(read_delimited(file), (0, []))[1]]


def _read_rows(
    file: File, column_names: Mapping[str, str], missing_remedy: str | None = None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each row as values by name, with its line number."""
    if file.kind == ".jsonl":
        for line, row in read_json_lines(file):
            _check_names(f"{file}, line {line}", "key", row, column_names, missing_remedy)
            yield line, row
        return
    rows = read_delimited(file)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not all(name in header for name in column_names.values()) and _is_data_row(file, header):
        raise UserError(
            f"{file} has no header: its first line is {', '.join(header)[:60]!r}; add a line of column names above it, "
            f"such as {_suggest_header(file, header, column_names)}"
        )
    check_column_names(str(file), header)
    _check_names(str(file), "column", header, column_names, missing_remedy)
    for line, values in rows:
        if len(values) != len(header):
            quote_remedy = "put quotes around texts that contain the separator, such as commas"
            remedies = {".tsv": "write one TAB between columns", ".xlsx": "clear the cells to the right of the header"}
            remedy = remedies.get(file.kind, quote_remedy)
            raise UserError(f"{file}, line {line} has {len(values)} columns but the header has {len(header)}; {remedy}")
        yield line, dict(zip(header, values))


def _is_data_row(file: File, header: Sequence[str]) -> bool:
    """Whether the first line of a table is a data row: one of its values repeats in its column, or it has no common
    column name and one value is a number or a long text.
    """
    rows = [row for _, row in islice(read_delimited(file), 1, _SAMPLE_ROWS) if len(row) == len(header)]
    if any(name and name in (row[column].strip() for row in rows) for column, name in enumerate(header)):
        return True
    has_common_name = any(guess_column(use, header) is not None for use in COLUMN_USES)
    return not has_common_name and any(_NUMBER.fullmatch(name) or len(name) > _MAX_NAME for name in header)


def _suggest_header(file: File, header: Sequence[str], column_names: Mapping[str, str]) -> str:
    """A plausible header: the longest column is the text, and the one with the fewest values is the label."""
    rows = [row for _, row in islice(read_delimited(file), _SAMPLE_ROWS) if len(row) == len(header)]
    columns = [[row[column] for row in rows] for column in range(len(header))]
    names = [f"column{number}" for number in range(1, len(header) + 1)]
    unused = sorted(range(len(header)), key=lambda column: -sum(map(len, columns[column])))
    uses = sorted(column_names, key="label".__eq__)
    for use in uses:
        if use == "label" and unused:
            unused.sort(key=lambda column: len(set(columns[column])))
        if unused:
            names[unused.pop(0)] = column_names[use]
    return ",".join(names)


def _check_names(
    location: str,
    noun: str,
    names: Sequence[str] | Mapping[str, Any],
    column_names: Mapping[str, str],
    remedy: str | None,
) -> None:
    missing = {use: name for use, name in column_names.items() if name not in names}
    if not missing:
        return
    hints = {name: suggest_column(name, list(names), use) for use, name in missing.items()}
    facts = " and ".join(f"no {noun} {name!r} ({hint})" for name, hint in hints.items())
    settings = " ".join(f"task.{use}={guess_column(use, names) or 'NAME'}" for use in missing)
    raise UserError(f"{location} has {facts}; {remedy or f'add --set {settings}'}")


def _text_value(file: File, line: int, name: str, value: Any) -> str:
    """A value as a string; JSON numbers and booleans as they are written."""
    text = check_text(file, line, name, json.dumps(value) if isinstance(value, (int, float)) else value)
    if not text.strip():
        raise UserError(f"{file}, line {line}: {name!r} is empty; fill it in, or remove the line")
    return text
