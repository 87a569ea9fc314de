"""Decoding loops as coroutines, so that several can share engine steps: each yields its next tokens and receives the
logits.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.engine import Engine, Piece
from headway.nn.models import Generative

R = TypeVar("R")


class Next(NamedTuple):
    """The next token of each row of one generation."""

    ids: Int[Tensor, "B"]
    decoding: Any  # GenerationProgress


Told = tuple[Float[Tensor, "B C"], Any]  # the logits after these tokens, and the decoding state
Course = Generator[Next, Told, R]


@torch.inference_mode()
def follow(model: Generative, course: Course[R]) -> R:
    """Run one coroutine to its end and return its result."""
    try:
        wanted = next(course)
        while True:
            wanted = course.send(model.step(*wanted))
    except StopIteration as end:
        return end.value


def step_together(model: Generative, wanted: Sequence[Next]) -> list[Told]:
    """Run one step for several coroutines. Each gets what `model.step` would return in a step of its own, bit for bit:
    the compiled engine takes one step for all, torch one step each, because batched sums have another order.
    """
    if not isinstance(model, Engine) or len(wanted) == 1:
        return [model.step(*each) for each in wanted]
    pieces = [
        Piece(row, place, [symbol])
        for ids, decoding in wanted
        for row, place, symbol in zip(decoding.rows, decoding.positions.tolist(), ids.tolist())
    ]
    logits = model.compute(pieces).split([len(ids) for ids, _ in wanted])
    after = [torch.where(each.positions < 0, each.positions, each.positions + 1) for _, each in wanted]
    return [(rows, each.at(places)) for rows, (_, each), places in zip(logits, wanted, after)]
