"""Decoding loops as coroutines, so that several can share engine steps. Each yields its next tokens and receives the
logits.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.engine.chunks import RowChunk
from headway.generate.stepper import Stepper
from headway.nn.models import Generative

R = TypeVar("R")


class NextTokens(NamedTuple):
    """The next token for each row in one generation."""

    ids: Int[Tensor, "B"]
    decoding: Any  # GenerationProgress


StepOutput = tuple[Float[Tensor, "B C"], Any]  # the logits after these tokens, and the decoding state
DecodingCoroutine = Generator[NextTokens, StepOutput, R]


@torch.inference_mode()
def run_coroutine(model: Generative, coroutine: DecodingCoroutine[R]) -> R:
    """Run one coroutine to the end and return its result."""
    try:
        request = next(coroutine)
        while True:
            request = coroutine.send(model.step(*request))
    except StopIteration as end:
        return end.value


def step_together(model: Generative, requests: Sequence[NextTokens]) -> list[StepOutput]:
    """Run one step for several coroutines. Each gets exactly what `model.step` would return in a separate step, bit for
    bit. The compiled engine takes one step for all of them; torch takes one step for each, because batching changes the
    order of sums.
    """
    if not hasattr(model, "compute") or len(requests) == 1:
        return [model.step(*entry) for entry in requests]
    chunks = [
        RowChunk(row, position, [token])
        for ids, decoding in requests
        for row, position, token in zip(decoding.rows, decoding.positions.tolist(), ids.tolist())
    ]
    logits = cast(Stepper, model).compute(chunks).split([len(ids) for ids, _ in requests])
    after = [torch.where(entry.positions < 0, entry.positions, entry.positions + 1) for _, entry in requests]
    return [(rows, entry.at(positions)) for rows, (_, entry), positions in zip(logits, requests, after)]
