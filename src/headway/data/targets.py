"""The prediction target of each sample: a class, a number or several labels, inferred from the labels in the data."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from headway.errors import UserError, nearest
from headway.parsing import parse_json

TargetKind = Literal["class", "number", "labels"]
_SEPARATORS = re.compile(r"[;|]")  # between the labels of a sample
_MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "?"}  # missing numbers in tables
_FEW = 20  # maximum of distinct integers that are treated as classes
_SHOWN = 40  # characters of a label in a message


class Target(NamedTuple):
    """The kind of labels, and the reason for messages."""

    kind: TargetKind
    reason: str


def target_of(labels: Sequence[str], wanted: str = "auto", every_number: bool = False) -> Target:
    """The kind of the `labels` (without missing ones): the `requested` kind, or inferred from their form.

    JSON lists, and names joined by ; or | that also occur alone or in other lists, are several labels. Numbers are
    regression targets if one has a fraction, or if there are many distinct ones that do not enumerate classes from 0 or
    1; with `every_number`, always. Anything else is a class.
    """
    if wanted != "auto":
        return Target(wanted, f"task.target={wanted}")  # type: ignore[arg-type]
    distinct = list(dict.fromkeys(labels))
    lists = [label for label in distinct if _json_list(label) is not None]
    if lists:
        return Target("labels", f"{_short(max(lists[:_FEW], key=len))} is a list")
    joined = [label for label in distinct if _SEPARATORS.search(label)]
    if joined:
        counts = Counter(part for label in distinct for part in label_set(label))
        parts = {part for label in joined for part in label_set(label)}
        shared = sum(counts[part] > 1 for part in parts)
        if 2 * shared >= len(parts):
            return Target("labels", f"{_short(joined[0])} combines labels that also occur elsewhere")
    values = [number(label) for label in distinct]
    if None in values or not values:
        _refuse_mixture(distinct, values)
        return Target("class", "the labels are names")
    found = sorted({value for value in values if value is not None})
    broken = next((value for value in found if not value.is_integer()), None)
    if every_number:
        return Target("number", "all labels are numbers")
    if broken is not None:
        return Target("number", f"all labels are numbers, and {broken:g} is not an integer")
    counted = found[0] in (0, 1) and found[-1] - found[0] + 1 == len(found)
    if len(found) > _FEW and not counted:
        return Target("number", f"the labels are {len(found):,} distinct numbers from {found[0]:g} to {found[-1]:g}")
    return Target("class", f"the labels are {len(found):,} distinct integers")


def _refuse_mixture(labels: Sequence[str], values: Sequence[float | None]) -> None:
    """UserError for names among numbers that cannot be class names."""
    broken = sum(value is not None and not value.is_integer() for value in values)
    if 2 * broken > len(labels):
        odd = labels[values.index(None)]
        raise UserError(
            f"{sum(value is not None for value in values):,} of {len(labels):,} distinct labels are numbers, but "
            f"{_short(odd)} is not; correct it, or set task.target=class"
        )


def missing(labels: Sequence[str], wanted: str = "auto") -> np.ndarray:
    """Which labels are missing, bool [N]: empty ones and, if all others are numbers, words such as nan or null."""
    empty = np.array([not label for label in labels], bool)
    words = np.array([label.strip().lower() in _MISSING for label in labels], bool)
    numeric = wanted in ("auto", "number") and all(
        number(label) is not None for label, word in zip(labels, words) if not word
    )
    return words if numeric and not words.all() else empty


def kept_rows(labels: Sequence[str], place: Callable[[int], str], wanted: str, skip: bool, what: str) -> np.ndarray:
    """The rows with a label, int64 [K]. UserError for a missing label unless `skip` is set, and if no row has a label.
    `noun` names a sample.
    """
    lost = missing(labels, wanted)
    if lost.any() and not skip:
        row = int(lost.argmax())
        more = f" ({int(lost.sum()):,} labels are missing)" if lost.sum() > 1 else ""
        empty = f"the label is {labels[row]!r}, which is not a number" if labels[row] else "the label is empty"
        raise UserError(
            f"{place(row)}: {empty}{more}; fill it in ([] for no labels at all), or set task.skip_bad=true to skip "
            f"each {what} without a label"
        )
    if lost.all():
        raise UserError(f"no {what} has a label, so there is nothing to learn; fill in the label column")
    return np.flatnonzero(~lost)


def number(label: str) -> float | None:
    """A finite number; None if the label is not one."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(labels: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """The labels as float32 [N]; UserError for one that is not a number, with its location."""
    values = [number(label) for label in labels]
    wrong = next((row for row, value in enumerate(values) if value is None), None)
    if wrong is not None:
        raise UserError(
            f"{place(wrong)}: the label {_short(labels[wrong])} is not a number; correct it, or set task.target=class"
        )
    found = np.array(values, np.float64)
    if found.size and np.abs(found).max() > np.finfo(np.float32).max:
        row = int(np.abs(found).argmax())
        raise UserError(f"{place(row)}: the label {labels[row]} is too large; divide all labels by a constant")
    return found.astype(np.float32)


def label_set(label: str) -> tuple[str, ...]:
    """The distinct labels of a sample: from a JSON list, or separated by ; or |."""
    listed = _json_list(label)
    parts = _SEPARATORS.split(label) if listed is None else listed
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def many_hot(sets: Sequence[Sequence[str]], names: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """1 for each label that a sample has, otherwise 0, float32 [N, C]. UserError for a label not in `names`."""
    columns = {name: column for column, name in enumerate(names)}
    found = np.zeros((len(sets), len(names)), np.float32)
    for row, labels in enumerate(sets):
        for label in labels:
            if label not in columns:
                raise UserError(
                    f"{place(row)}: the label {_short(label)} is unknown to this model ({nearest(label, names)}); "
                    "correct it, or train with it"
                )
            found[row, columns[label]] = 1
    return found


def _json_list(label: str) -> list[str] | None:
    """The strings of a JSON list of strings or numbers; None for anything else."""
    if not label.lstrip().startswith("["):
        return None
    try:
        found = parse_json(label)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(item, (str, int, float)) for item in found):
        return None
    return [item if isinstance(item, str) else json.dumps(item) for item in found]


def _short(label: str) -> str:
    return repr(label if len(label) <= _SHOWN else f"{label[: _SHOWN - 3]}...")
