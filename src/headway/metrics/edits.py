"""Edit distance between sequences of symbols, and the reference that needs the fewest edits."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from headway.errors import UserError


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Insertions, deletions and replacements that turn one sequence into the other (Levenshtein).

    A column of the table is two whole numbers: the bits where it rises and where it falls by one from a row to the
    next (Myers 1999, in Hyyrö's form of 2003). So a symbol of `second` costs a dozen operations on numbers of
    `len(first)` bits, whatever the length.
    """
    if not first:
        return len(second)
    places: dict[Hashable, int] = {}
    for row, symbol in enumerate(first):
        places[symbol] = places.get(symbol, 0) | 1 << row
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)
    for symbol in second:
        match = places.get(symbol, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls  # rows that cost no more than their diagonal
        right_rises = falls | (every & ~(diagonal | rises))
        right_falls = diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        rises = every & (right_falls << 1 | ~(diagonal | right_rises))
        falls = every & diagonal & right_rises
    return distance


def fewest_edits(hypothesis: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    """(edits, length) of the reference nearest to `hypothesis`; of equally near ones, of the longest."""
    if not references:
        raise UserError("a sample has no reference; give at least one for each")
    scored = [(edit_distance(reference, hypothesis), -len(reference)) for reference in references]
    edits, length = min(scored)
    return edits, -length
