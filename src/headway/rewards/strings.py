"""Rewards for text: an exact answer, a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]  # the prompt's line in the data: "prompt" and other keys


def exact(prompt: str, output: str, row: Row) -> float:
    """1 if the output is the row's `answer`, apart from white space around it."""
    return float(output.strip() == str(row["answer"]).strip())


def check_answer(row: Row) -> None:
    """Raise ValueError for a row without an answer."""
    if not isinstance(row.get("answer"), (str, int, float)):
        raise ValueError("has no 'answer', a string or a number; add it")


def regex(prompt: str, output: str, row: Row) -> float:
    """1 if the row's `pattern` matches anywhere in the output; ^ and $ match at its start and end."""
    return float(re.search(row["pattern"], output) is not None)


def check_pattern(row: Row) -> None:
    """Raise ValueError for a row without a valid regular expression."""
    if not isinstance(row.get("pattern"), str):
        raise ValueError("has no 'pattern'; add a regular expression, or set task.pattern for all prompts")
    check_expression(row["pattern"], "the pattern")


def check_expression(pattern: str, noun: str) -> None:
    """Raise ValueError for an invalid regular expression; `noun` is what it is called."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"has {noun} {pattern!r:.80}, which is invalid ({error}); correct it") from error
