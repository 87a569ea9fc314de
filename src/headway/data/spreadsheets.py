"""Rows of .xlsx workbooks, as the strings that a .csv would have."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from headway.data.files import File, blocks
from headway.errors import UserError, logger
from headway.received import DAMAGE, check_whole

_LOG = logger(__name__)
_ROWS = 1_048_576  # the format's maximum; openpyxl would accept any number that a row states
# What openpyxl raises for invalid workbooks, in addition to its own exceptions.
_BROKEN = (*DAMAGE, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, IndexError, SyntaxError)


def sheet_rows(file: File) -> Iterator[tuple[int, list[str]]]:
    """The non-blank rows of the first sheet, with their numbers: formulas as their stored values, dates in ISO 8601.
    UserError if the workbook is damaged or expands beyond the read limits, or openpyxl is not installed.
    """
    openpyxl = _package(file)
    data = b"".join(blocks(file))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_whole(str(file), len(data), sum(member.file_size for member in archive.infolist()))
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        if len(book.worksheets) > 1:
            _LOG.warning("%s: read only the first of %d sheets (%s)", file, len(book.worksheets), book.sheetnames[0])
        yield from _filled(book.worksheets[0], file)
    except (*_BROKEN, openpyxl.utils.exceptions.InvalidFileException) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{file} is damaged or not .xlsx ({reason}); save it again, or as .csv (UTF-8)") from error


def _package(file: File) -> Any:
    try:
        importlib.import_module("openpyxl.utils.exceptions")
        return importlib.import_module("openpyxl")
    except ImportError as error:
        raise UserError(
            f"{file} needs the package openpyxl; pip install 'headway[data]', or save the sheet as .csv (UTF-8)"
        ) from error


def _filled(sheet: Any, file: File) -> Iterator[tuple[int, list[str]]]:
    sheet.reset_dimensions()  # the file may state any size
    width = 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        if number > _ROWS:
            raise UserError(
                f"{file} has a row beyond {_ROWS:,}, the maximum of a sheet; save it again, or as .csv (UTF-8)"
            )
        texts = [_text(value) for value in row]
        while texts and not texts[-1]:
            texts.pop()
        if texts:
            width = width or len(texts)
            yield number, texts + [""] * (width - len(texts))


def _text(value: Any) -> str:
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
