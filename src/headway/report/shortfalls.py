"""Why a score is as bad as it can be: what is known of it, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headway.report.charts import shorten

_FEW = 3  # answers from which on it means something that all are equal
_SHOWN = 60  # characters


def shortfalls(scores: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """What explains the scores of a model that has learnt little; nothing for one that has."""
    yield from _alike([sample for sample in samples if "output" in sample and "reference" in sample])
    if scores.get("bleu") == 0:
        yield (
            "BLEU is 0: no translation has a word in common with its reference, or none is as long as the four words "
            "that BLEU counts."
        )
    if max(scores.get("wer") or 0, scores.get("per") or 0) > 1:
        yield "An error rate is above 100 %, as more is written than there is to be said: each extra word is an error."
    if scores.get("exact_match") == 0:
        yield "Exact match is 0: no answer is right to the letter."
    if scores.get("accuracy") == 0:
        yield "Accuracy is 0: no answer is right."
    if scores.get("f1") == 0 and scores.get("recall") == 0:
        yield "F1 is 0: not one entity is found with its bounds and its kind."
    if scores.get("success_rate") == 0:
        yield "Success is 0: no episode reached what its task asks for."


def _alike(samples: Sequence[Mapping[str, str]]) -> Iterator[str]:
    answers = {sample["output"].strip() for sample in samples}
    if len(samples) < _FEW or len(answers) > 1 or len({sample["reference"] for sample in samples}) == 1:
        return
    answer = shorten(answers.pop(), _SHOWN)
    told = f"the same, “{answer}”" if answer else "empty"
    yield f"All {len(samples)} answers that are shown are {told}: the model does not tell its inputs apart yet."
