"""Labels that differ only in how they are written are one label."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from headway.errors import logger

_LOG = logger(__name__)
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")  # as tables with empty places write whole numbers
_TRUTHS = ("true", "false")
_EDGES = "\ufeff\u200b\u200e\u200f"  # marks at the edges of a text that nobody sees, in addition to blanks
_SHOWN = 5  # labels that a message names


class Joined(NamedTuple):
    """`labels` in the place of those that were given; `remarks` name what was joined."""

    labels: list[str]
    remarks: tuple[str, ...]


def join_spellings(given: Sequence[str], known: Collection[str] = ()) -> Joined:
    """One spelling for labels that differ only in Unicode's form, in blanks around them, as 1 and 1.0 or as true and
    TRUE: that of a `known` label (of a run or model), else the plainest. The log reports what is joined.

    1 and true stay two labels: a column that has both means two things.
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
    remark = f"labels that differ only in how they are written are joined: {shown}"
    _LOG.warning("%s", remark)
    return Joined([names[label] for label in given], (f"{remark[0].upper()}{remark[1:]}.",))


def _trimmed(label: str) -> str:
    """A label in Unicode's composed form, without blanks around it. Empty labels stay what they are."""
    return unicodedata.normalize("NFC", label).strip().strip(_EDGES).strip() or label


def plain(label: str) -> str:
    """What all spellings of a label share."""
    text = _trimmed(label)
    whole = _WHOLE.fullmatch(text)
    if whole is not None:
        return whole[1]
    return text.lower() if text.lower() in _TRUTHS else text
