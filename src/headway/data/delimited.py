"""Rows of .csv and .tsv files: quotes as programs write them, and texts with lone quotes as people do."""

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

Row = tuple[int, list[str]]  # with the number of the line that it ends on
_SEPARATORS = (",", ";", "\t")  # of equally many columns the first
_OBJECT = 64  # bytes, about, that a line takes beside its characters
_LONG = threading.Lock()  # held while csv's limit of a field, which is the process's own, is raised


def delimited(file: File) -> Iterator[Row]:
    """The rows of a .csv (RFC 4180) or .tsv, or of the first sheet of a .xlsx, blank ones left out.

    What parts the columns of a .csv is what its first line has most of: commas, semicolons or TABs. A .tsv whose header
    is in quotes has them as a .csv has. In any other one a field is in quotes where these are needed, as writers of csv
    have them: around a TAB, a line break, or quotes that are doubled. All other quotes are part of the text.
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
    """The rows of a file with quotes. While one is longer than csv's limit of a field, that is raised to ours."""
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
        raise UserError(f"{file}, line {reader.line_num} cannot be read ({error}); check its quotes") from error
    finally:
        if raised:
            _lower(usual)


def _lower(usual: int) -> bool:
    """Set csv's limit back; whether it is still raised."""
    csv.field_size_limit(usual)
    _LONG.release()
    return False


def _width(header: str, separator: str) -> int:
    """How many columns a first line would have; what is wrong with it is told by who reads all lines."""
    with suppress(csv.Error):
        return len(next(csv.reader([header], delimiter=separator), []))
    return 0


_INSIDE = r'[^"]*+(?:""[^"]*+)*+'  # what is between quotes
_WHOLE, _REST = re.compile(f'"{_INSIDE}"'), re.compile(_INSIDE)


def tabbed(first: str, source: Iterator[str]) -> Iterator[Row]:
    """The rows of a .tsv whose quotes are around texts that need them; `first` is the line before the others."""
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
    """Lines, of which those that follow can be looked at before they come."""

    def __init__(self, first: str, source: Iterator[str]) -> None:
        self._waiting, self._source = deque([first]), source

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._waiting.popleft() if self._waiting else next(self._source, None)
            if line is None:
                return
            yield line

    def following(self, number: int) -> str | None:
        """A line that comes after so many others; None after the last one."""
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
    """The fields of a row, without the quotes that they need."""
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
    """Where the field that starts at `place` ends: after its quotes, if they close before a TAB or the end."""
    whole = _WHOLE.match(text, place)
    if whole is not None and text[whole.end() : whole.end() + 1] in ("", "\t"):
        return whole.end()
    end = text.find("\t", place)
    return len(text) if end < 0 else end


def _broken(line: str, columns: int, ahead: _Ahead) -> list[str]:
    """The lines of a row that starts with `line`: several where quotes that stay open join them to a row of as many
    columns as the header has, and they are not such rows by themselves. They are taken.
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
    """Whether the quotes of a field do not close where the text ends."""
    place = 0
    while place < len(text):
        if text[place] == '"' and (rest := _REST.match(text, place + 1)) and rest.end() == len(text):
            return True
        place = _end(text, place) + 1
    return False
