"""Rows of .csv and .tsv files: quoted as programs write them, or with stray quotes as people write them."""

from __future__ import annotations

import csv
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from headway.data.input_files import File, read_lines
from headway.data.spreadsheets import read_sheet
from headway.errors import UserError
from headway.safe_io import limit_error, read_limits

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
        return _read_quoted(
            file, header, source, max(_SEPARATORS, key=lambda separator: _count_columns(header, separator))
        )
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


def _count_columns(header: str, separator: str) -> int:
    """The number of columns in a first line; its errors are reported when all lines are read."""
    with suppress(csv.Error):
        return len(next(csv.reader([header], delimiter=separator), []))
    return 0


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
