"""Continuations that are drawn at random, several of one prompt, under a rule."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.generate.prompts import check_number
from headway.generate.sampling import Sampler, Sampling, row_keys
from headway.generate.search import Constraint, Hypothesis
from headway.nn.models import Generative


def draw_on(
    model: Generative,
    logits: Float[Tensor, "1 C"],
    decoding: Any,
    count: int,
    limit: int,
    ends: Collection[int],
    sampling: Sampling,
    rule: Constraint,
) -> list[Hypothesis]:
    """`count` continuations of at most `limit` symbols from where a generation stands, the likeliest a symbol first.

    Their scores are the mean log p of a symbol, the end included, at temperature 1 and under the rule.
    """
    rows = torch.zeros(count, dtype=torch.long, device=logits.device)
    logits, decoding = logits[rows], decoding.select(rows)
    sampler = Sampler(sampling, row_keys([()] * count), [()] * count, logits.shape[-1], logits.device)
    history = torch.zeros(count, limit, dtype=torch.long, device=logits.device)
    found: list[Hypothesis | None] = [None] * count
    totals = [0.0] * count
    for step in range(limit):
        rule(logits, history[:, :step])
        chosen, logprobs = sampler.pick(logits, step)
        history[:, step] = chosen
        for row, (symbol, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist())):
            if found[row] is not None:
                continue
            check_number(logprob)
            totals[row] += logprob
            if symbol in ends:
                found[row] = _made(history[row, :step], totals[row], True)
        if all(found) or step + 1 == limit:
            break
        logits, decoding = model.step(chosen, decoding)
    whole = [one or _made(history[row, : step + 1], totals[row], False) for row, one in enumerate(found)]
    return sorted(whole, key=lambda one: -one.score)


def _made(ids: Tensor, total: float, finished: bool) -> Hypothesis:
    return Hypothesis(ids.tolist(), total / (len(ids) + finished), total, finished)
