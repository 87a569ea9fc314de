"""Error rates of words and phonemes: fractions, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from headway.errors import UserError
from headway.metrics.edits import fewest_edits
from headway.metrics.intervals import bootstrap_ratio, wilson

Rates = dict[str, float | list[float]]


def word_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Rates:
    """`wer` of texts: word edits per reference word. Each text has one or more references; the nearest counts.

    Words stand between white space; any normalisation is the caller's.
    """
    edits, lengths = _edits(hypotheses, references)
    return {**_rate("wer", edits, lengths, seed), "samples": len(edits)}


def pronunciation_error_rates(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Rates:
    """`wer` and `per` of pronunciations, which are phonemes between spaces; the nearest reference counts.

    `wer` is the share of words that match none of their references, `per` phoneme edits per reference phoneme.
    """
    edits, lengths = _edits(hypotheses, references)
    wrong = sum(1 for count in edits if count)
    rates = _rate("per", edits, lengths, seed)
    return {
        "wer": wrong / len(edits),
        "wer_interval": wilson(wrong, len(edits)),
        **rates,
        "samples": len(edits),
    }


def _edits(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} hypotheses for {len(references)} references; give one for each")
    if not hypotheses:
        raise UserError("there are 0 samples to measure; give at least one")
    if any(isinstance(some, str) for some in references):
        raise UserError("references are single texts; give a list of references for each sample")
    pairs = zip(hypotheses, references)
    counted = [fewest_edits(text.split(), [reference.split() for reference in some]) for text, some in pairs]
    return [edits for edits, _ in counted], [length for _, length in counted]


def _rate(name: str, edits: list[int], lengths: list[int], seed: int) -> Rates:
    if not sum(lengths):
        raise UserError(f"{name} needs references with words in them; all {len(lengths)} are empty")
    interval = bootstrap_ratio(edits, lengths, seed)
    return {name: sum(edits) / sum(lengths), f"{name}_interval": interval}
