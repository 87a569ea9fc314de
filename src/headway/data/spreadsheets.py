"""Rows of .xlsx workbooks, as the strings that a .csv would contain."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from headway.data.input_files import File, read_blocks
from headway.errors import UserError, logger
from headway.safe_io import DAMAGE, check_in_memory

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
    openpyxl = _import_openpyxl(file)
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


def _import_openpyxl(file: File) -> Any:
    try:
        importlib.import_module("openpyxl.utils.exceptions")
        return importlib.import_module("openpyxl")
    except ImportError as error:
        raise UserError(
            f"{file} needs the package openpyxl; pip install 'headway[data]', or save the sheet as .csv (UTF-8)"
        ) from error


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
