"""Parse columns of numbers in the formats that people and programs use: 1234.5, 66,19, 1.234,5 or 1,234.5."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_MISSING_VALUES = ("", "nan", "na", "n/a", "null", "none", "nat", "-")
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?")  # before decimals
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")  # commas between thousands


class NumberColumn(NamedTuple):
    """Numbers, NaN if missing; `invalid` lists the rows with any other content."""

    values: Float[np.ndarray, "N"]
    invalid: list[int]


def parse_number_column(values: Sequence[Any]) -> NumberColumn:
    """Parse a column. A comma is the decimal separator if all numbers of the column allow it and not all commas can be
    thousands separators. The whole column decides; if both readings are possible, these values are invalid.
    """
    numbers = np.full(len(values), np.nan)
    unparsed: list[int] = []
    for row, value in enumerate(values):
        number = _parse_plain(value)
        if number is None:
            unparsed.append(row)
        else:
            numbers[row] = number
    strings = {row: str(values[row]).strip() for row in unparsed if isinstance(values[row], str) and "," in values[row]}
    thousands = all(_THOUSANDS.fullmatch(text) for text in strings.values())
    decimals = sum(_COMMA.fullmatch(text) is not None for text in strings.values())
    if not strings or (thousands and decimals == len(strings)):
        return NumberColumn(numbers, unparsed)
    invalid = [row for row in unparsed if row not in strings]
    if not thousands and decimals:
        strings = {row: str(value).strip() for row, value in enumerate(values) if isinstance(value, str)}
    for row, text in strings.items():
        if thousands:
            numbers[row] = float(text.replace(",", ""))
        elif _COMMA.fullmatch(text):
            numbers[row] = float(text.replace(".", "").replace(",", "."))
        elif text.lower() not in _MISSING_VALUES and row not in invalid:
            invalid.append(row)
    return NumberColumn(numbers, sorted(invalid))


def _parse_plain(value: Any) -> float | None:
    """A number, NaN if missing; None for anything else."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING_VALUES):
        return math.nan
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: integers of 400 digits
        return None
    return None if number is None or math.isinf(number) else number
