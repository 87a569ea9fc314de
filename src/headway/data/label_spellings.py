"""Merge labels that differ only in formatting: Unicode form, surrounding blanks, 1 and 1.0, true and TRUE."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from headway.errors import logger

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
