"""Rows of .csv and .tsv files, quoted as programs write them or with stray quotes as people write them; and of .xlsx
workbooks, as the strings that a .csv would contain.
"""

from __future__ import annotations

import csv
import importlib
import io
import re
import threading
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, datetime, time
from itertools import chain
from typing import Any

from headway.data.input_files import File, read_blocks, read_lines
from headway.errors import UserError, logger
from headway.io.files import DAMAGE, check_in_memory, limit_error, read_limits

_LOG = logger(__name__)
_MAX_ROWS = 1_048_576  # the format's maximum; openpyxl would accept any number that a row states
# What openpyxl raises for invalid workbooks, in addition to its own exceptions.
_WORKBOOK_ERRORS = (
    *DAMAGE,
    zipfile.BadZipFile,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    SyntaxError,
)


def read_sheet(file: File) -> Iterator[tuple[int, list[str]]]:
    """The non-blank rows of the first sheet, with their numbers: formulas as their stored values, dates in ISO 8601.
    UserError if the workbook is damaged or expands beyond the read limits, or openpyxl is not installed.
    """
    try:
        importlib.import_module("openpyxl.utils.exceptions")
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as error:
        raise UserError(
            f"{file} needs the package openpyxl; run pip install 'headway[data]', or save the sheet as .csv (UTF-8)"
        ) from error
    content = b"".join(read_blocks(file))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_in_memory(str(file), len(content), sum(member.file_size for member in archive.infolist()))
        workbook = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
        if len(workbook.worksheets) > 1:
            _LOG.warning(
                "%s: read only the first of %d sheets (%s)", file, len(workbook.worksheets), workbook.sheetnames[0]
            )
        yield from _non_blank_rows(workbook.worksheets[0], file)
    except (*_WORKBOOK_ERRORS, openpyxl.utils.exceptions.InvalidFileException) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{file} is damaged or not .xlsx ({reason}); save it again, or as .csv (UTF-8)") from error


def _non_blank_rows(sheet: Any, file: File) -> Iterator[tuple[int, list[str]]]:
    sheet.reset_dimensions()  # the file may state any size
    width = 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        if number > _MAX_ROWS:
            raise UserError(
                f"{file} has a row beyond {_MAX_ROWS:,}, the maximum of a sheet; save it again, or as .csv (UTF-8)"
            )
        cells = [_cell_text(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            width = width or len(cells)
            yield number, cells + [""] * (width - len(cells))


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat(" ") if value.time() != time() else value.date().isoformat()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


Row = tuple[int, list[str]]  # the number of its last line, and its fields
_SEPARATORS = (",", ";", "\t")  # on a tie, the first wins
_LINE_OVERHEAD = 64  # approximate overhead per line in bytes
_FIELD_LIMIT_LOCK = threading.Lock()  # held while csv's process-wide field size limit is raised


def read_delimited(file: File) -> Iterator[Row]:
    """The rows of a .csv (RFC 4180) or .tsv, or of the first sheet of a .xlsx, without blank rows.

    The separator of a .csv is the most frequent of comma, semicolon and TAB in its first line. A .tsv with a quoted
    header is quoted like a .csv. In any other .tsv, quotes count only where csv writers need them: around a TAB, a line
    break or doubled quotes. All other quotes are part of the text.
    """
    if file.kind == ".xlsx":
        return read_sheet(file)
    source = read_lines(file)
    header = next(source, "")
    if file.kind != ".tsv":

        def count_columns(separator: str) -> int:
            with suppress(csv.Error):  # reported when all lines are read
                return len(next(csv.reader([header], delimiter=separator), []))
            return 0

        return _read_quoted(file, header, source, max(_SEPARATORS, key=count_columns))
    fields = header.split("\t")
    if any(fields) and all(_QUOTED_FIELD.fullmatch(field) for field in fields if field):
        return _read_quoted(file, header, source, "\t")
    return read_tab_separated(header, source)


def _read_quoted(file: File, header: str, source: Iterator[str], separator: str) -> Iterator[Row]:
    """The rows of a quoted file. While a row is longer than csv's field size limit, that limit is raised to ours."""
    with _FIELD_LIMIT_LOCK:
        default_limit, size, is_raised = csv.field_size_limit(), 0, False

    def terminated_lines() -> Iterator[str]:
        nonlocal size, is_raised
        for line in chain([header], source):
            size += len(line) + 1
            if size > default_limit and not is_raised:
                _FIELD_LIMIT_LOCK.acquire()
                is_raised = True
                csv.field_size_limit(read_limits().line)
            yield f"{line}\n"

    reader = csv.reader(terminated_lines(), delimiter=separator, strict=True)
    try:
        for row in reader:
            size = 0
            if is_raised:
                is_raised = _restore_limit(default_limit)
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        if "field larger" in str(error):
            raise limit_error(f"{file}, line {reader.line_num}", "is in a longer field", "line") from error
        raise UserError(f"{file}, line {reader.line_num} is not valid CSV ({error}); check its quotes") from error
    finally:
        if is_raised:
            _restore_limit(default_limit)


def _restore_limit(default_limit: int) -> bool:
    """Restore csv's limit; returns whether it is still raised."""
    csv.field_size_limit(default_limit)
    _FIELD_LIMIT_LOCK.release()
    return False


_QUOTED_TEXT = r'[^"]*+(?:""[^"]*+)*+'  # the text between quotes
_QUOTED_FIELD, _CLOSING = re.compile(f'"{_QUOTED_TEXT}"'), re.compile(_QUOTED_TEXT)


def read_tab_separated(first: str, source: Iterator[str]) -> Iterator[Row]:
    """The rows of a .tsv with quotes only around fields that need them; `first` is the line before `source`."""
    columns, number = first.count("\t") + 1, 0
    lookahead = _Lookahead(first, source)
    for line in lookahead:
        number += 1
        if not line.startswith('"') and '\t"' not in line:
            if line:
                yield number, line.split("\t")
            continue
        parts = _join_lines(line, columns, lookahead)
        number += len(parts) - 1
        yield number, split_tabs("\n".join(parts))


class _Lookahead:
    """Lines with lookahead."""

    def __init__(self, first: str, source: Iterator[str]) -> None:
        self._buffer, self._source = deque([first]), source

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._buffer.popleft() if self._buffer else next(self._source, None)
            if line is None:
                return
            yield line

    def peek(self, offset: int) -> str | None:
        """The upcoming line at an index, from 0; None after the last one."""
        while offset >= len(self._buffer):
            line = next(self._source, None)
            if line is None:
                return None
            self._buffer.append(line)
        return self._buffer[offset]

    def skip(self, count: int) -> None:
        for _ in range(count):
            self._buffer.popleft()


def split_tabs(text: str) -> list[str]:
    """The fields of a row, without the quotes around those that need them."""
    if not text.startswith('"') and '\t"' not in text:
        return text.split("\t")
    fields, start = [], 0
    while True:
        end = _field_end(text, start)
        field = text[start:end]
        quoted_text = field[1:-1]
        if _QUOTED_FIELD.fullmatch(field) and (not quoted_text or any(special in quoted_text for special in '"\t\n')):
            field = quoted_text.replace('""', '"')
        fields.append(field)
        if end == len(text):
            return fields
        start = end + 1


def _field_end(text: str, start: int) -> int:
    """The end of the field that starts at `start`: after its quotes if they close before a TAB or the line's end."""
    quoted = _QUOTED_FIELD.match(text, start)
    if quoted is not None and text[quoted.end() : quoted.end() + 1] in ("", "\t"):
        return quoted.end()
    end = text.find("\t", start)
    return len(text) if end < 0 else end


def _join_lines(line: str, columns: int, lookahead: _Lookahead) -> list[str]:
    """Consume and return the lines of a row that starts with `line`. Open quotes join several lines if the result has
    as many columns as the header and the lines are not such rows by themselves.
    """
    parts, size, max_size = [line], len(line), read_limits().line
    is_open = _is_quote_open(line)
    while is_open:
        next_line = lookahead.peek(len(parts) - 1)
        if next_line is None or size > max_size:
            return [line]
        parts.append(next_line)
        size += len(next_line) + _LINE_OVERHEAD
        closing = _CLOSING.match(next_line)
        end = 0 if closing is None else closing.end()
        if end < len(next_line):
            if next_line[end + 1 : end + 2] not in ("", "\t"):
                return [line]
            is_open = _is_quote_open(next_line[end + 2 :])
    fits_header = len(split_tabs("\n".join(parts))) == columns
    if len(parts) == 1 or not fits_header or all(len(split_tabs(part)) == columns for part in parts if part):
        return [line]
    lookahead.skip(len(parts) - 1)
    return parts


def _is_quote_open(text: str) -> bool:
    """Whether a quoted field is still open at the end of the text."""
    start = 0
    while start < len(text):
        if text[start] == '"' and (closing := _CLOSING.match(text, start + 1)) and closing.end() == len(text):
            return True
        start = _field_end(text, start) + 1
    return False
