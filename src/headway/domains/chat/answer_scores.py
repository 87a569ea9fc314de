"""Scores of a model's answers to held-out prompts: its win rate, and the share of unusable answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from torch import nn

from headway.domains.chat.task import Conversations, completions
from headway.learn.examples import spread_evenly

_MAX_PROMPTS = 8  # prompts per evaluation
_LENGTH_FACTOR, _EXTRA_TOKENS = (
    2,
    16,
)  # an answer is endless from this many times the longest chosen one, plus this many tokens
_MAX_BAD_SHARE = 0.5  # share of bad answers above which a model is unusable
_MAX_PERPLEXITY_CHANGE = 1.1  # maximum perplexity of the chosen answers, as a multiple of that at the start
_MIN_ANSWERS = 3  # minimum answers to conclude that they are all equal


def answer_scores(model: nn.Module, chats: Conversations, rows: np.ndarray) -> dict[str, float]:
    """Score greedy answers to at most 8 of the prompts: the share that resembles the chosen answer more than the
    rejected one (`win_rate`; a tie counts half), the shares that are empty or do not end, and the share of the most
    frequent answer unless the chosen ones repeat too.
    """
    sampled_rows = spread_evenly(rows, _MAX_PROMPTS).tolist()
    endings = [(chats.reply(row, 0), chats.reply(row, 1)) for row in sampled_rows]
    max_tokens = max(len(chats.codec.encode(text)) for pair in endings for text in pair)
    generated = list(completions(model, chats, sampled_rows, _LENGTH_FACTOR * max_tokens + _EXTRA_TOKENS))
    answers = [completion.text.strip() for completion in generated]
    chosen_texts = [pair[0] for pair in endings]
    return {
        "win_rate": sum(_win_score(text, *pair) for text, pair in zip(answers, endings)) / len(answers),
        "empty_rate": sum(not text for text in answers) / len(answers),
        "endless_rate": sum(completion.finish_reason == "length" for completion in generated) / len(answers),
        "equal_rate": _top_share(answers) if _top_share(chosen_texts) <= _MAX_BAD_SHARE else 0.0,
    }


def failure_reason(scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
    """Describe what is wrong with a model's answers, given its scores, unless the best model so far has the same
    fault.
    """
    faults = {
        "empty_rate": "empty",
        "endless_rate": "endless",
        "equal_rate": "the same for different prompts",
    }
    for name, description in faults.items():
        if scores[name] > _MAX_BAD_SHARE and (best is None or best.get(name, 0.0) <= _MAX_BAD_SHARE):
            return f"{scores[name]:.0%} of its answers to held-out prompts are {description}"
    change = scores["perplexity_change"]
    if change > _MAX_PERPLEXITY_CHANGE:
        return f"the perplexity of the chosen answers is {change:.3g} times what it was at the start"
    return None


def _win_score(text: str, chosen: str, rejected: str) -> float:
    chosen_ratio, rejected_ratio = (
        SequenceMatcher(None, text, ending, autojunk=False).ratio() for ending in (chosen, rejected)
    )
    return 0.5 if chosen_ratio == rejected_ratio else float(chosen_ratio > rejected_ratio)


def _top_share(texts: Sequence[str]) -> float:
    """The share of the most frequent answer; 0 if there are too few answers."""
    if len(texts) < _MIN_ANSWERS:
        return 0.0
    return Counter(texts).most_common(1)[0][1] / len(texts)
