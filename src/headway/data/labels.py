"""Labels of samples: those that differ only in formatting (Unicode form, surrounding blanks, 1 and 1.0, true and
TRUE) are merged, and the prediction target (a class, a number or several labels) is inferred from them.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from headway.errors import UserError, logger, nearest
from headway.io.json_files import parse_json

_LOG = logger(__name__)
_INTEGER = re.compile(r"([+-]?[0-9]+)\.0*")  # how tables with empty cells write integers
_BOOLEANS = ("true", "false")
_INVISIBLE = "\ufeff\u200b\u200e\u200f"  # invisible characters to strip, in addition to blanks
_MAX_LISTED = 5  # labels listed in a message


class MergedLabels(NamedTuple):
    """The merged `labels`; `notes` list what was merged."""

    labels: list[str]
    notes: tuple[str, ...]


def merge_spellings(raw_labels: Sequence[str], known: Collection[str] = ()) -> MergedLabels:
    """Use one form for labels that differ only in Unicode form, surrounding blanks, as 1 and 1.0 or as true and
    TRUE: that of a `known` label (from a run or model), otherwise the simplest. The log reports what was merged.

    1 and true stay separate labels, because a column with both means two things.
    """
    spellings, known_labels = dict.fromkeys(raw_labels), set(known)
    known_spellings = {normalized_label(label): label for label in reversed(list(known))}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in spellings:
        groups[normalized_label(label)].append(label)
    names: dict[str, str] = {}
    merged: list[str] = []
    for normal_form, labels in groups.items():
        trimmed = {_trim(label) for label in labels}
        name = known_spellings.get(normal_form) or (trimmed.pop() if len(trimmed) == 1 else normal_form)
        names |= {label: label if label in known_labels else name for label in labels}
        if len({names[label] for label in labels}) < len(labels):
            merged.append(f"{' and '.join(map(ascii, labels))} as {name!r}")
    if not merged:
        return MergedLabels([names[label] for label in raw_labels], ())
    listing = "; ".join(merged[:_MAX_LISTED]) + ("; ..." if len(merged) > _MAX_LISTED else "")
    note = f"labels that differ only in formatting were merged: {listing}"
    _LOG.warning("%s", note)
    return MergedLabels([names[label] for label in raw_labels], (f"{note[0].upper()}{note[1:]}.",))


def _trim(label: str) -> str:
    """A label in composed Unicode form (NFC), without surrounding blanks. Empty labels are unchanged."""
    return unicodedata.normalize("NFC", label).strip().strip(_INVISIBLE).strip() or label


def normalized_label(label: str) -> str:
    """The normal form that all variants of a label share."""
    text = _trim(label)
    integer = _INTEGER.fullmatch(text)
    if integer is not None:
        return integer[1]
    return text.lower() if text.lower() in _BOOLEANS else text


TargetKind = Literal["class", "number", "labels"]
_SEPARATORS = re.compile(r"[;|]")  # between a sample's labels
_MISSING_VALUES = {"", "nan", "na", "n/a", "null", "none", "-", "?"}  # missing numbers in tables
_MAX_INTEGER_CLASSES = 20  # maximum number of distinct integers treated as classes
_MAX_LABEL = 40  # characters of a label in a message


class Target(NamedTuple):
    """The kind of labels, and the reason for messages."""

    kind: TargetKind
    reason: str


def infer_target(labels: Sequence[str], requested: str = "auto", every_number: bool = False) -> Target:
    """The kind of the `labels` (without missing ones): the `requested` kind, or inferred from their format.

    JSON lists, and names joined by ; or | that also occur alone or in other lists, are several labels. Numbers are
    regression targets if one has a fraction, or if there are many distinct ones that do not enumerate classes from 0 or
    1; with `every_number`, always. Anything else is a class.
    """
    if requested != "auto":
        return Target(requested, f"task.target={requested}")  # type: ignore[arg-type]
    distinct = list(dict.fromkeys(labels))
    lists = [label for label in distinct if json_list(label) is not None]
    if lists:
        return Target("labels", f"{_abbreviate(max(lists[:_MAX_INTEGER_CLASSES], key=len))} is a list")
    joined = [label for label in distinct if _SEPARATORS.search(label)]
    if joined:
        counts = Counter(part for label in distinct for part in label_set(label))
        parts = {part for label in joined for part in label_set(label)}
        shared_count = sum(counts[part] > 1 for part in parts)
        if 2 * shared_count >= len(parts):
            return Target("labels", f"{_abbreviate(joined[0])} combines labels that also occur elsewhere")
    values = [parse_number(label) for label in distinct]
    if None in values or not values:
        fractional_count = sum(value is not None and not value.is_integer() for value in values)
        if 2 * fractional_count > len(distinct):
            name = distinct[values.index(None)]
            raise UserError(
                f"{sum(value is not None for value in values):,} of {len(distinct):,} distinct labels are numbers, but "
                f"{_abbreviate(name)} is not; correct it, or set task.target=class"
            )
        return Target("class", "the labels are names")
    sorted_values = sorted({value for value in values if value is not None})
    fractional = next((value for value in sorted_values if not value.is_integer()), None)
    if every_number:
        return Target("number", "all labels are numbers")
    if fractional is not None:
        return Target("number", f"all labels are numbers, and {fractional:g} is not an integer")
    enumerates_classes = sorted_values[0] in (0, 1) and sorted_values[-1] - sorted_values[0] + 1 == len(sorted_values)
    if len(sorted_values) > _MAX_INTEGER_CLASSES and not enumerates_classes:
        return Target(
            "number",
            f"the labels are {len(sorted_values):,} distinct numbers from {sorted_values[0]:g} to "
            f"{sorted_values[-1]:g}",
        )
    return Target("class", f"the labels are {len(sorted_values):,} distinct integers")


def missing_mask(labels: Sequence[str], requested: str = "auto") -> np.ndarray:
    """Which labels are missing, bool [N]: empty ones and, if all others are numbers, words such as nan or null."""
    empty = np.array([not label for label in labels], bool)
    is_word = np.array([label.strip().lower() in _MISSING_VALUES for label in labels], bool)
    numeric = requested in ("auto", "number") and all(
        parse_number(label) is not None for label, word in zip(labels, is_word) if not word
    )
    return is_word if numeric and not is_word.all() else empty


def labelled_rows(
    labels: Sequence[str], locate: Callable[[int], str], requested: str, skip: bool, noun: str
) -> np.ndarray:
    """The rows with a label, int64 [K]. UserError for a missing label unless `skip` is set, and if no row has a label.
    `noun` names a sample.
    """
    is_missing = missing_mask(labels, requested)
    if is_missing.any() and not skip:
        row = int(is_missing.argmax())
        count_note = f" ({int(is_missing.sum()):,} labels are missing)" if is_missing.sum() > 1 else ""
        problem = f"the label is {labels[row]!r}, which is not a number" if labels[row] else "the label is empty"
        raise UserError(
            f"{locate(row)}: {problem}{count_note}; fill it in ([] for no labels at all), or set task.skip_bad=true "
            "to skip "
            f"each {noun} without a label"
        )
    if is_missing.all():
        raise UserError(f"no {noun} has a label, so there is nothing to learn; fill in the label column")
    return np.flatnonzero(~is_missing)


def parse_number(label: str) -> float | None:
    """A finite number; None if the label is not one, such as 1_000, which Python would read."""
    if "_" in label:
        return None
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def parse_numbers(labels: Sequence[str], locate: Callable[[int], str]) -> np.ndarray:
    """The labels as float32 [N]; UserError for one that is not a number, with its location."""
    values = [parse_number(label) for label in labels]
    invalid_row = next((row for row, value in enumerate(values) if value is None), None)
    if invalid_row is not None:
        raise UserError(
            f"{locate(invalid_row)}: the label {_abbreviate(labels[invalid_row])} is not a number; correct it, or set "
            "task.target=class"
        )
    array = np.array(values, np.float64)
    if array.size and np.abs(array).max() > np.finfo(np.float32).max:
        row = int(np.abs(array).argmax())
        raise UserError(f"{locate(row)}: the label {labels[row]} is too large; divide all labels by a constant")
    return array.astype(np.float32)


def label_set(label: str) -> tuple[str, ...]:
    """The distinct labels of a sample: from a JSON list, or separated by ; or |."""
    listed = json_list(label)
    parts = _SEPARATORS.split(label) if listed is None else listed
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def multi_hot(sets: Sequence[Sequence[str]], names: Sequence[str], locate: Callable[[int], str]) -> np.ndarray:
    """1 for each label that a sample has, otherwise 0, float32 [N, C]. UserError for a label not in `names`."""
    columns = {name: column for column, name in enumerate(names)}
    array = np.zeros((len(sets), len(names)), np.float32)
    for row, labels in enumerate(sets):
        for label in labels:
            if label not in columns:
                raise UserError(
                    f"{locate(row)}: the label {_abbreviate(label)} is unknown to this model "
                    f"({nearest(label, names)}); "
                    "correct it, or train with it"
                )
            array[row, columns[label]] = 1
    return array


def json_list(label: str) -> list[str] | None:
    """The strings of a JSON list of strings or numbers; None for anything else."""
    if not label.lstrip().startswith("["):
        return None
    try:
        content = parse_json(label)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, list) or not all(isinstance(item, (str, int, float)) for item in content):
        return None
    return [item if isinstance(item, str) else json.dumps(item) for item in content]


def _abbreviate(label: str) -> str:
    return repr(label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 3]}...")
