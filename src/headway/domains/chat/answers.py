"""Scores of a model's answers to held-out prompts: its win rate, and the share of unusable answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from torch import nn

from headway.domains.chat.task import Conversations, completions
from headway.learn.examples import spread

_MOST = 8  # prompts per evaluation
_LENGTH, _SPARE = 2, 16  # an answer is endless at this many times the longest chosen one, plus this many tokens
_FAULTY = 0.5  # share of bad answers above which a model is unusable
_DRIFT = 1.1  # maximum perplexity of the chosen answers, as a multiple of that at the start
_FEWEST = 3  # answers needed to judge whether they are all equal


def answer_scores(model: nn.Module, chats: Conversations, rows: np.ndarray) -> dict[str, float]:
    """Scores of the greedy answers to at most 8 of the prompts: the share that resembles the chosen answer more than
    the rejected one (`win_rate`; a tie counts half), the shares that are empty or do not end, and the share of the most
    frequent answer unless the chosen ones repeat too.
    """
    some = spread(rows, _MOST).tolist()
    wanted = [(chats.reply(row, 0), chats.reply(row, 1)) for row in some]
    longest = max(len(chats.codec.encode(text)) for pair in wanted for text in pair)
    found = list(completions(model, chats, some, _LENGTH * longest + _SPARE))
    texts = [completion.text.strip() for completion in found]
    chosen = [pair[0] for pair in wanted]
    return {
        "win_rate": sum(_win(text, *pair) for text, pair in zip(texts, wanted)) / len(texts),
        "empty_rate": sum(not text for text in texts) / len(texts),
        "endless_rate": sum(completion.finish_reason == "length" for completion in found) / len(texts),
        "equal_rate": _most_frequent(texts) if _most_frequent(chosen) <= _FAULTY else 0.0,
    }


def fault(scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
    """What is wrong with the answers of a model with these scores but not with those of the best model so far."""
    faults = {
        "empty_rate": "empty",
        "endless_rate": "endless",
        "equal_rate": "the same to different prompts",
    }
    for name, what in faults.items():
        if scores[name] > _FAULTY and (best is None or best.get(name, 0.0) <= _FAULTY):
            return f"{scores[name]:.0%} of its answers to held-out prompts are {what}"
    change = scores["perplexity_change"]
    if change > _DRIFT:
        return f"the perplexity of the chosen answers is {change:.3g} times that at the start"
    return None


def _win(text: str, chosen: str, rejected: str) -> float:
    first, second = (SequenceMatcher(None, text, other, autojunk=False).ratio() for other in (chosen, rejected))
    return 0.5 if first == second else float(first > second)


def _most_frequent(texts: Sequence[str]) -> float:
    """The share of the most frequent text; 0 if there are too few texts."""
    if len(texts) < _FEWEST:
        return 0.0
    return Counter(texts).most_common(1)[0][1] / len(texts)
