"""Metrics for language modelling, translation and captions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from types import ModuleType
from typing import Any

import numpy as np

from headway.errors import UserError
from headway.metrics.intervals import RESAMPLES, TAILS, bootstrap_mean, wilson_interval


def perplexity(nats: float, tokens: int) -> float:
    """exp of the loss per token, where `nats` is the sum over all `tokens`; infinite on overflow."""
    try:
        return math.exp(_per_unit(nats, tokens, "tokens"))
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, size: int) -> float:
    """The loss in bits per UTF-8 byte for a text of `size` bytes, which is comparable between tokenizers."""
    return _per_unit(nats, size, "bytes") / math.log(2)


def language_scores(nats: float, tokens: int, size: int | None = None) -> dict[str, float]:
    """`loss` (nats per token), `perplexity`, and `bits_per_byte` if `size`, the text's bytes, is known."""
    scores = {"loss": _per_unit(nats, tokens, "tokens"), "perplexity": perplexity(nats, tokens)}
    return scores if size is None else {**scores, "bits_per_byte": bits_per_byte(nats, size)}


def _per_unit(nats: float, count: int, unit: str) -> float:
    if count <= 0:
        raise UserError(f"the loss was computed over {count} {unit}; evaluate on at least one")
    return nats / count


Scores = dict[str, float | str | list[float]]
References = Sequence[str] | Sequence[Sequence[str]]  # one or several for each hypothesis


def bleu(
    hypotheses: Sequence[str], references: References, *, lowercase: bool = False, tokenize: str = "13a"
) -> Scores:
    """Corpus `bleu` (0 to 100), `bleu_signature` and `bleu_interval`.

    Use `tokenize="none"` for text that is already tokenised, and report it with the score.
    """
    return _score("bleu", hypotheses, references, lambda metrics: metrics.BLEU(lowercase=lowercase, tokenize=tokenize))


def chrf(hypotheses: Sequence[str], references: References, *, word_order: int = 0) -> Scores:
    """Corpus `chrf` (0 to 100), `chrf_signature` and `chrf_interval`; `word_order=2` is chrF++."""
    return _score("chrf", hypotheses, references, lambda metrics: metrics.CHRF(word_order=word_order))


def translation_scores(hypotheses: Sequence[str], references: References) -> Scores:
    """The scores that `evaluate` reports for translations: BLEU and chrF, cased and detokenised, and `samples`."""
    return {**bleu(hypotheses, references), **chrf(hypotheses, references), "samples": len(hypotheses)}


def _score(name: str, hypotheses: Sequence[str], references: References, make: Callable[[ModuleType], Any]) -> Scores:
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} translations do not match {len(references)} references; pass one per reference"
        )
    if not hypotheses:
        raise UserError("there are 0 translations to evaluate; pass at least one")
    reference_lists = [
        [sample_references] if isinstance(sample_references, str) else list(sample_references)
        for sample_references in references
    ]
    if not all(reference_lists):
        raise UserError(f"translation {reference_lists.index([])} has no reference; pass at least one per translation")
    # References in sacrebleu's layout: the first of every sentence, then the second of every sentence, ...
    streams = [list(column) for column in zip_longest(*reference_lists)]
    try:
        from sacrebleu import metrics  # an extra, and slow to import
    except ImportError:
        raise UserError("BLEU and chrF need sacrebleu; run pip install 'headway[metrics]'") from None
    metric = make(metrics)
    score = metric.corpus_score(hypotheses, streams).score
    # sacrebleu's own bootstrap does not return bounds, and fails if only some resamples score 0. So only its formula
    # and its counts per sentence are used.
    counts = np.asarray(metric._extract_corpus_statistics(hypotheses, streams), dtype=np.float64)
    resampled = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    scores = [float(metric._compute_score_from_stats(sums).score) for sums in (resampled @ counts).tolist()]
    interval = [float(bound) for bound in np.percentile(scores, TAILS)]
    return {name: score, f"{name}_signature": str(metric.get_signature()), f"{name}_interval": interval}


_WORD = re.compile(r"\w+")


def rouge(summaries: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """`rouge1`, `rouge2` and `rougeL` (Lin 2004): mean F1 of words, pairs of words and the longest common subsequence,
    0 to 1, each with the best of its references and with its interval. Words are lower-case and not stemmed.
    """
    rows = []
    for summary, targets in zip(summaries, references, strict=True):
        words, by_reference = _WORD.findall(summary.lower()), []
        for other in (_WORD.findall(target.lower()) for target in targets):
            counts = [[Counter(zip(*(row[i:] for i in range(n)))) for row in (words, other)] for n in (1, 2)]
            common = [sum((a & b).values()) for a, b in counts] + [_common_subsequence(words, other)]
            sizes = [len(words) + len(other) - 2 * missing for missing in (0, 1, 0)]
            by_reference.append([2 * shared / size if shared else 0.0 for shared, size in zip(common, sizes)])
        rows.append(np.max(by_reference, axis=0))
    if not rows:
        raise UserError("there are 0 summaries to evaluate; pass at least one")
    scores: Scores = {}
    for name, values in zip(("rouge1", "rouge2", "rougeL"), np.array(rows).T):
        scores |= {name: float(values.mean()), f"{name}_interval": bootstrap_mean(values)}
    return {**scores, "rouge_signature": "case:lower|tokens:words|stemmer:no", "samples": len(rows)}


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        previous = 0  # of the words before both
        for i, other in enumerate(second, 1):
            previous, lengths[i] = lengths[i], previous + 1 if word == other else max(lengths[i], lengths[i - 1])
    return lengths[-1]


def exact_match(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """`exact_match` (the share of captions that equal one of their references) and its interval."""
    hits = sum(caption in sample_references for caption, sample_references in zip(captions, references, strict=True))
    return {"exact_match": hits / len(captions), "exact_match_interval": wilson_interval(hits, len(captions))}


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """The scores that `evaluate` reports for captions: exact match, BLEU, chrF (all references), and `samples`."""
    return {**exact_match(captions, references), **translation_scores(captions, references)}
