"""Entities in tagged text, and their F1 as conlleval computes it (Tjong Kim Sang and De Meulder 2003)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headway.errors import UserError
from headway.metrics.intervals import bootstrap_ratio, wilson

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_SAME = {"L": "E", "U": "S"}  # the letters of BILOU

Scores = dict[str, float | list[float]]


class Span(NamedTuple):
    """Words start ... stop - 1 are an entity of a kind."""

    kind: str
    start: int
    stop: int


def has_spans(tags: Iterable[str]) -> bool:
    """Whether tags say where entities begin (B-PER, I-PER, O; BIOES, BILOU), and not what each word is (NN, VB)."""
    known = set(tags) - {OUTSIDE}
    return bool(known) and all(_TAG.fullmatch(tag) for tag in known)


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence, from tags in BIO (of either kind), BIOES or BILOU, sound or not.

    As in conlleval an entity begins at B and S, after O, E and S, and where the kind changes; it goes on until the next
    begins or an O comes.
    """
    found: list[Span] = []
    kind, start, last = "", 0, OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, here = _parts(tag)
        begins = letter in "BS" or last in (OUTSIDE, "E", "S") or here != kind
        if last != OUTSIDE and (letter == OUTSIDE or begins):
            found.append(Span(kind, start, place))
        if letter != OUTSIDE and begins:
            kind, start = here, place
        last = letter
    return found


def _parts(tag: str) -> tuple[str, str]:
    match = _TAG.fullmatch(tag)
    if match is None:
        return (OUTSIDE, "") if tag == OUTSIDE else ("I", tag)
    return _SAME.get(match[1], match[1]), match[2]


def entity_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], seed: int = 0) -> Scores:
    """`precision`, `recall` and `f1` of entities over all sentences; one is right if kind, start and stop are.

    The interval of `f1` draws sentences anew. Where there is no entity on a side, its rate is 0.
    """
    hits, said, true = [], [], []
    for one, other in zip(predicted, labels, strict=True):
        ours, theirs = set(spans(one)), set(spans(other))
        hits.append(len(ours & theirs))
        said.append(len(ours))
        true.append(len(theirs))
    doubled, both = [2 * hit for hit in hits], [a + b for a, b in zip(said, true)]
    return {
        "f1": sum(doubled) / max(1, sum(both)),
        "f1_interval": bootstrap_ratio(doubled, both, seed) if any(both) else [0.0, 0.0],
        "precision": sum(hits) / max(1, sum(said)),
        "recall": sum(hits) / max(1, sum(true)),
    }


def tag_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> Scores:
    """What `evaluate` says of tags: accuracy over words and, where tags have entities, their precision, recall, F1."""
    pairs = [pair for one, other in zip(predicted, labels, strict=True) for pair in zip(one, other, strict=True)]
    if not pairs:
        raise UserError("there are 0 words to measure; give at least one")
    hits = sum(one == other for one, other in pairs)
    scores: Scores = {"accuracy": hits / len(pairs), "accuracy_interval": wilson(hits, len(pairs))}
    entities = entity_scores(predicted, labels) if has_spans(tag for _, tag in pairs) else {}
    return {**entities, **scores, "samples": len(labels)}
