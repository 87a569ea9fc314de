"""Merge labels that differ only in spelling: Unicode form, surrounding blanks, 1 and 1.0, true and TRUE."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from headway.errors import logger

_LOG = logger(__name__)
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")  # how tables with empty cells write integers
_TRUTHS = ("true", "false")
_EDGES = "\ufeff\u200b\u200e\u200f"  # invisible characters to strip, in addition to blanks
_SHOWN = 5  # labels listed in a message


class Joined(NamedTuple):
    """The merged `labels`; `notes` list what was merged."""

    labels: list[str]
    remarks: tuple[str, ...]


def join_spellings(given: Sequence[str], known: Collection[str] = ()) -> Joined:
    """Use one spelling for labels that differ only in Unicode form, surrounding blanks, as 1 and 1.0 or as true and
    TRUE: that of a `known` label (of a run or model), otherwise the simplest. The log reports what was merged.

    1 and true stay two labels, because a column with both means two things.
    """
    spellings, exact = dict.fromkeys(given), set(known)
    before = {plain(label): label for label in reversed(list(known))}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in spellings:
        groups[plain(label)].append(label)
    names: dict[str, str] = {}
    joined: list[str] = []
    for shared, labels in groups.items():
        trimmed = {_trimmed(label) for label in labels}
        name = before.get(shared) or (trimmed.pop() if len(trimmed) == 1 else shared)
        names |= {label: label if label in exact else name for label in labels}
        if len({names[label] for label in labels}) < len(labels):
            joined.append(f"{' and '.join(map(ascii, labels))} as {name!r}")
    if not joined:
        return Joined([names[label] for label in given], ())
    shown = "; ".join(joined[:_SHOWN]) + ("; ..." if len(joined) > _SHOWN else "")
    remark = f"labels that differ only in spelling are merged: {shown}"
    _LOG.warning("%s", remark)
    return Joined([names[label] for label in given], (f"{remark[0].upper()}{remark[1:]}.",))


def _trimmed(label: str) -> str:
    """A label in composed Unicode form (NFC), without surrounding blanks. Empty labels are unchanged."""
    return unicodedata.normalize("NFC", label).strip().strip(_EDGES).strip() or label


def plain(label: str) -> str:
    """The normal form that all spellings of a label share."""
    text = _trimmed(label)
    whole = _WHOLE.fullmatch(text)
    if whole is not None:
        return whole[1]
    return text.lower() if text.lower() in _TRUTHS else text
