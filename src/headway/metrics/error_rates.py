"""Word and phoneme error rates, and English text normalisation for comparing transcripts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache

from headway.errors import UserError
from headway.metrics.intervals import bootstrap_ratio, wilson_interval


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The Levenshtein distance: the fewest insertions, deletions and replacements between two sequences.

    A column in the table is stored as two integers, whose bits mark where it rises and falls by one from row to row
    (Myers 1999, as formulated by Hyyrö 2003). So each item in `second` costs a dozen operations on integers with
    `len(first)` bits.
    """
    if not first:
        return len(second)
    positions: dict[Hashable, int] = {}
    for row, item in enumerate(first):
        positions[item] = positions.get(item, 0) | 1 << row
    all_rows, last_row = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = all_rows, 0, len(first)
    for item in second:
        match = positions.get(item, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls  # rows whose cost equals that on their diagonal
        next_rises = falls | (all_rows & ~(diagonal | rises))
        next_falls = diagonal & rises
        distance += bool(next_rises & last_row) - bool(next_falls & last_row)
        next_rises = next_rises << 1 | 1
        rises = all_rows & (next_falls << 1 | ~(diagonal | next_rises))
        falls = all_rows & diagonal & next_rises
    return distance


def min_edits(hypothesis: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    """(edits, length) for the reference nearest to `hypothesis`; the longest one if several are equally near."""
    if not references:
        raise UserError("a sample has no reference; pass at least one per sample")
    scored = [(edit_distance(reference, hypothesis), -len(reference)) for reference in references]
    edits, length = min(scored)
    return edits, -length


Rates = dict[str, float | list[float]]


def word_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Rates:
    """`wer` for texts: word edits per reference word. If a text has several references, the nearest counts.

    Words are separated by white space; normalise texts before calling this.
    """
    edits, lengths = _edits(hypotheses, references)
    return {**_rate("wer", edits, lengths, seed), "samples": len(edits)}


def pronunciation_error_rates(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Rates:
    """`wer` and `per` for pronunciations, which are space-separated phonemes; the nearest reference counts.

    `wer` is the share of words that match none of their references; `per` is phoneme edits per reference phoneme.
    """
    edits, lengths = _edits(hypotheses, references)
    wrong_words = sum(1 for count in edits if count)
    rates = _rate("per", edits, lengths, seed)
    return {
        "wer": wrong_words / len(edits),
        "wer_interval": wilson_interval(wrong_words, len(edits)),
        **rates,
        "samples": len(edits),
    }


def _edits(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} hypotheses do not match {len(references)} references; pass one per reference"
        )
    if not hypotheses:
        raise UserError("there are 0 samples to evaluate; pass at least one")
    if any(isinstance(sample_references, str) for sample_references in references):
        raise UserError("references are plain strings; pass a list of references for each sample")
    pairs = zip(hypotheses, references)
    edits_and_lengths = [
        min_edits(text.split(), [reference.split() for reference in sample_references])
        for text, sample_references in pairs
    ]
    return [edits for edits, _ in edits_and_lengths], [length for _, length in edits_and_lengths]


def _rate(name: str, edits: list[int], lengths: list[int], seed: int) -> Rates:
    if not sum(lengths):
        raise UserError(
            f"{name} needs non-empty references, but all {len(lengths)} are empty; pass references with words"
        )
    interval = bootstrap_ratio(edits, lengths, seed)
    return {name: sum(edits) / sum(lengths), f"{name}_interval": interval}


# Expanded by the package, but not by Whisper's published version.
_LATER_EXPANSIONS = ("kinda", "sorta", "dunno", "cause")


@cache
def english_normalizer() -> Callable[[str], str]:
    """Whisper's published normaliser for English text. Raises UserError if its package is not installed."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise UserError("this needs the package whisper-normalizer; run pip install 'headway[audio]'") from None
    normalizer = EnglishTextNormalizer()
    for word in _LATER_EXPANSIONS:
        normalizer.replacers.pop(rf"\b{word}\b", None)
    return normalizer


def english_words(text: str) -> str:
    """Normalise English text for comparison: lower case, expanded words, digits, no punctuation."""
    return english_normalizer()(text).strip()
