"""Parse columns of numbers in the formats that people and programs use: 1234.5, 66,19, 1.234,5 or 1,234.5."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_MISSING = ("", "nan", "na", "n/a", "null", "none", "nat", "-")
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?")  # before decimals
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")  # commas between thousands


class NumberColumn(NamedTuple):
    """Numbers, NaN if missing; `invalid` lists the rows with any other content."""

    values: Float[np.ndarray, "N"]
    wrong: list[int]


def read_numbers(values: Sequence[Any]) -> NumberColumn:
    """Parse a column. A comma is the decimal separator if all numbers of the column allow it and not all commas can be
    thousands separators. The whole column decides; if both readings are possible, these values are invalid.
    """
    found = np.full(len(values), np.nan)
    others: list[int] = []
    for row, value in enumerate(values):
        number = _plain(value)
        if number is None:
            others.append(row)
        else:
            found[row] = number
    texts = {row: str(values[row]).strip() for row in others if isinstance(values[row], str) and "," in values[row]}
    thousands = all(_THOUSANDS.fullmatch(text) for text in texts.values())
    decimals = sum(_COMMA.fullmatch(text) is not None for text in texts.values())
    if not texts or (thousands and decimals == len(texts)):
        return NumberColumn(found, others)
    wrong = [row for row in others if row not in texts]
    if not thousands and decimals:
        texts = {row: str(value).strip() for row, value in enumerate(values) if isinstance(value, str)}
    for row, text in texts.items():
        if thousands:
            found[row] = float(text.replace(",", ""))
        elif _COMMA.fullmatch(text):
            found[row] = float(text.replace(".", "").replace(",", "."))
        elif text.lower() not in _MISSING and row not in wrong:
            wrong.append(row)
    return NumberColumn(found, sorted(wrong))


def _plain(value: Any) -> float | None:
    """A number, NaN if missing; None for anything else."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return math.nan
    try:
        found = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: integers of 400 digits
        return None
    return None if found is None or math.isinf(found) else found
