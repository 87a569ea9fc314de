"""Rows of .csv and .tsv files: quoted as programs write them, or with stray quotes as people write them."""

from __future__ import annotations

import csv
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from headway.data.files import File, lines
from headway.data.spreadsheets import sheet_rows
from headway.errors import UserError
from headway.received import exceeded, limits

Row = tuple[int, list[str]]  # with the number of its last line
_SEPARATORS = (",", ";", "\t")  # on a tie, the first wins
_OBJECT = 64  # approximate overhead of a line in bytes
_LONG = threading.Lock()  # held while csv's process-wide field size limit is raised


def delimited(file: File) -> Iterator[Row]:
    """The rows of a .csv (RFC 4180) or .tsv, or of the first sheet of a .xlsx, without blank rows.

    The separator of a .csv is the most frequent of comma, semicolon and TAB in its first line. A .tsv with a quoted
    header is quoted like a .csv. In any other .tsv, quotes count only where csv writers need them: around a TAB, a line
    break or doubled quotes. All other quotes are part of the text.
    """
    if file.kind == ".xlsx":
        return sheet_rows(file)
    source = lines(file)
    header = next(source, "")
    if file.kind != ".tsv":
        return _quoted(file, header, source, max(_SEPARATORS, key=lambda one: _width(header, one)))
    fields = header.split("\t")
    if any(fields) and all(_WHOLE.fullmatch(field) for field in fields if field):
        return _quoted(file, header, source, "\t")
    return tabbed(header, source)


def _quoted(file: File, header: str, source: Iterator[str], separator: str) -> Iterator[Row]:
    """The rows of a quoted file. While a row is longer than csv's field size limit, that limit is raised to ours."""
    with _LONG:
        usual, size, raised = csv.field_size_limit(), 0, False

    def given() -> Iterator[str]:
        nonlocal size, raised
        for line in chain([header], source):
            size += len(line) + 1
            if size > usual and not raised:
                _LONG.acquire()
                raised = True
                csv.field_size_limit(limits().line)
            yield f"{line}\n"

    reader = csv.reader(given(), delimiter=separator, strict=True)
    try:
        for row in reader:
            size = 0
            if raised:
                raised = _lower(usual)
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        if "field larger" in str(error):
            raise exceeded(f"{file}, line {reader.line_num}", "is in a longer field", "line") from error
        raise UserError(f"{file}, line {reader.line_num} is not valid CSV ({error}); check its quotes") from error
    finally:
        if raised:
            _lower(usual)


def _lower(usual: int) -> bool:
    """Restore csv's limit; returns whether it is still raised."""
    csv.field_size_limit(usual)
    _LONG.release()
    return False


def _width(header: str, separator: str) -> int:
    """The number of columns in a first line; its errors are reported when all lines are read."""
    with suppress(csv.Error):
        return len(next(csv.reader([header], delimiter=separator), []))
    return 0


_INSIDE = r'[^"]*+(?:""[^"]*+)*+'  # the text between quotes
_WHOLE, _REST = re.compile(f'"{_INSIDE}"'), re.compile(_INSIDE)


def tabbed(first: str, source: Iterator[str]) -> Iterator[Row]:
    """The rows of a .tsv with quotes only around fields that need them; `first` is the line before `source`."""
    columns, number = first.count("\t") + 1, 0
    ahead = _Ahead(first, source)
    for line in ahead:
        number += 1
        if not line.startswith('"') and '\t"' not in line:
            if line:
                yield number, line.split("\t")
            continue
        parts = _broken(line, columns, ahead)
        number += len(parts) - 1
        yield number, split_tabs("\n".join(parts))


class _Ahead:
    """Lines with lookahead."""

    def __init__(self, first: str, source: Iterator[str]) -> None:
        self._waiting, self._source = deque([first]), source

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._waiting.popleft() if self._waiting else next(self._source, None)
            if line is None:
                return
            yield line

    def following(self, number: int) -> str | None:
        """The upcoming line at an index, from 0; None after the last one."""
        while number >= len(self._waiting):
            line = next(self._source, None)
            if line is None:
                return None
            self._waiting.append(line)
        return self._waiting[number]

    def take(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft()


def split_tabs(text: str) -> list[str]:
    """The fields of a row, without the quotes around fields that need them."""
    if not text.startswith('"') and '\t"' not in text:
        return text.split("\t")
    found, place = [], 0
    while True:
        end = _end(text, place)
        field = text[place:end]
        inside = field[1:-1]
        if _WHOLE.fullmatch(field) and (not inside or any(mark in inside for mark in '"\t\n')):
            field = inside.replace('""', '"')
        found.append(field)
        if end == len(text):
            return found
        place = end + 1


def _end(text: str, place: int) -> int:
    """The end of the field that starts at `start`: after its quotes, if they close before a TAB or the end."""
    whole = _WHOLE.match(text, place)
    if whole is not None and text[whole.end() : whole.end() + 1] in ("", "\t"):
        return whole.end()
    end = text.find("\t", place)
    return len(text) if end < 0 else end


def _broken(line: str, columns: int, ahead: _Ahead) -> list[str]:
    """Consume and return the lines of a row that starts with `line`. Open quotes join several lines if the result has
    as many columns as the header and the lines are not such rows by themselves.
    """
    parts, size, most = [line], len(line), limits().line
    opened = _is_open(line)
    while opened:
        following = ahead.following(len(parts) - 1)
        if following is None or size > most:
            return [line]
        parts.append(following)
        size += len(following) + _OBJECT
        rest = _REST.match(following)
        end = 0 if rest is None else rest.end()
        if end < len(following):
            if following[end + 1 : end + 2] not in ("", "\t"):
                return [line]
            opened = _is_open(following[end + 2 :])
    joined = len(split_tabs("\n".join(parts))) == columns
    if len(parts) == 1 or not joined or all(len(split_tabs(part)) == columns for part in parts if part):
        return [line]
    ahead.take(len(parts) - 1)
    return parts


def _is_open(text: str) -> bool:
    """Whether a quoted field is still open at the end of the text."""
    place = 0
    while place < len(text):
        if text[place] == '"' and (rest := _REST.match(text, place + 1)) and rest.end() == len(text):
            return True
        place = _end(text, place) + 1
    return False
