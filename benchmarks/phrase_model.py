"""A small phrase-based translation model, the classical tool for pairs of sequences (Koehn, Och and Marcu 2003).

Words are aligned by IBM Model 1 in both directions (Brown et al. 1993), phrases are extracted from the alignments on
which both agree, and a monotone beam search combines the phrases' probabilities with a Kneser-Ney model of the targets.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from headway.learn.examples import spread_evenly
from headway.learn.objectives.baselines import NgramModel

ITERATIONS = 4
ALIGNED = 15_000  # pairs that words are aligned in
MAX_PHRASE = 4  # words of a phrase
OPTIONS = 12  # translations of a phrase
BEAM = 8
ORDER = 3
Words = Sequence[str]
Pairs = Sequence[tuple[Words, Words]]


def word_table(pairs: Pairs) -> dict[str, dict[str, float]]:
    """p(target word | source word) of IBM Model 1, with an empty source word ""."""
    together: dict[str, set[str]] = defaultdict(set)
    for source, target in pairs:
        for word in ("", *source):
            together[word].update(target)
    table = {word: dict.fromkeys(others, 1 / len(others)) for word, others in together.items() if others}
    for _ in range(ITERATIONS):
        counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for source, target in pairs:
            words = ("", *source)
            for other in target:
                shares = [table[word][other] for word in words]
                total = sum(shares)
                for word, share in zip(words, shares):
                    counts[word][other] += share / total
        table = {}
        for word, row in counts.items():
            total = sum(row.values())
            table[word] = {other: count / total for other, count in row.items()}
    return table


def links(source: Words, target: Words, table: dict[str, dict[str, float]]) -> set[tuple[int, int]]:
    """The best source word of each target word, unless the empty word is better."""
    found = set()
    for column, other in enumerate(target):
        scores = [table.get(word, {}).get(other, 0.0) for word in source]
        row = max(range(len(source)), key=scores.__getitem__, default=-1)
        if row >= 0 and scores[row] > table[""].get(other, 0.0):
            found.add((row, column))
    return found


def phrases(
    source: Words, target: Words, alignment: set[tuple[int, int]]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The pairs of phrases that agree with an alignment: no word in one is aligned with a word outside the other."""
    found = []
    for first in range(len(source)):
        for last in range(first, min(first + MAX_PHRASE, len(source))):
            columns = [column for row, column in alignment if first <= row <= last]
            if not columns or max(columns) - min(columns) >= MAX_PHRASE:
                continue
            low, high = min(columns), max(columns)
            if any(low <= column <= high and not first <= row <= last for row, column in alignment):
                continue
            while high + 1 < len(target) and not any(column == high + 1 for _, column in alignment):
                found.append((tuple(source[first : last + 1]), tuple(target[low : high + 1])))
                high += 1  # words that are not aligned may join the phrase before them
                if high - low >= MAX_PHRASE:
                    break
            if high - low < MAX_PHRASE:
                found.append((tuple(source[first : last + 1]), tuple(target[low : high + 1])))
    return found


class PhraseModel:
    """Phrases with their log probabilities in both directions, and a model of the targets."""

    def __init__(self, pairs: Pairs) -> None:
        aligned = [pairs[row] for row in spread_evenly(np.arange(len(pairs)), ALIGNED).tolist()]
        forward = word_table(aligned)
        backward = word_table([(target, source) for source, target in aligned])
        joint: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
        for source, target in aligned:
            other_way = {(row, column) for column, row in links(target, source, backward)}
            joint.update(phrases(source, target, links(source, target, forward) & other_way))
        of_source, of_target = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        for (source, target), count in joint.items():
            of_source[source] += count
            of_target[target] += count
        options: dict[tuple[str, ...], list[tuple[float, tuple[str, ...]]]] = defaultdict(list)
        for (source, target), count in joint.items():
            score = math.log(count / of_source[source]) + 0.5 * math.log(count / of_target[target])
            options[source].append((score, target))
        self.options = {source: sorted(found, reverse=True)[:OPTIONS] for source, found in options.items()}
        vocabulary = Counter(word for _, target in pairs for word in target)
        self.ids = {word: number for number, word in enumerate(vocabulary, 2)}  # 0 is a boundary, 1 unknown
        documents = [[0, 0, *(self.ids[word] for word in target), 0] for _, target in pairs]
        self.language = NgramModel(documents, ORDER, len(self.ids) + 2)

    def translate(self, source: Words, weight: float, bonus: float) -> list[str]:
        """The best target for a source; `weight` is that of the language model, and `bonus` is for each word."""
        stacks: list[list[tuple[float, tuple[int, ...], tuple[str, ...]]]] = [[] for _ in range(len(source) + 1)]
        stacks[0] = [(0.0, (0, 0), ())]
        for start in range(len(source)):
            for score, context, output in sorted(stacks[start], reverse=True)[:BEAM]:
                for end in range(start + 1, min(start + MAX_PHRASE, len(source)) + 1):
                    known = self.options.get(tuple(source[start:end]))
                    if known is None and end == start + 1:
                        known = [(-5.0, ()), (-6.0, (source[start],))]  # leave an unknown word out, or copy it
                    for phrase_score, target in known or ():
                        total, state = score + phrase_score + bonus * len(target), context
                        for word in target:
                            number = self.ids.get(word, 1)
                            total += weight * math.log(self.language.probability(state, number))
                            state = (state[1], number)
                        stacks[end].append((total, state, output + target))
        ended = [
            (score + weight * math.log(self.language.probability(context, 0)), output)
            for score, context, output in stacks[-1]
        ]
        return list(max(ended)[1]) if ended else []
