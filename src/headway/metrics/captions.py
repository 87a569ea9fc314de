"""How good captions are: as a whole, and by what they share with the right ones."""

from __future__ import annotations

from collections.abc import Sequence

from headway.metrics.intervals import wilson
from headway.metrics.translation import Scores, translation_scores


def exact_match(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """The share `exact_match` of captions that are one of their references to the letter, and its interval."""
    hits = sum(caption in some for caption, some in zip(captions, references, strict=True))
    return {"exact_match": hits / len(captions), "exact_match_interval": wilson(hits, len(captions))}


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """What `evaluate` says of captions: exact matches, BLEU and chrF against all references, and `samples`."""
    return {**exact_match(captions, references), **translation_scores(captions, references)}
