"""Perplexity over a long text in overlapping windows, as it is usually reported for GPT-2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from headway.errors import UserError
from headway.generate.prompts import check_ids, context_of, device_of, evaluating
from headway.kernels import IGNORED
from headway.models import Transformer


class Nats(NamedTuple):
    """-log p summed over `tokens` tokens."""

    total: float
    tokens: int


@torch.inference_mode()
def strided_nats(
    model: Transformer,
    ids: Sequence[int],
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = 8192,
) -> Nats:
    """-log p of every token but the first, each read in a window of `context` tokens, itself included.

    Windows begin every `stride` tokens (half the context by default) and score only what no window before them has
    scored: all but those of the first window follow at least context - stride tokens. A stride of context - 1 cuts the
    text into windows that share one token; a stride of 1 gives every token all the context there is. `context` is the
    model's where it has one. Raises UserError for a text of fewer than two tokens and for a stride outside 1 to
    context - 1.
    """
    if len(ids) < 2:
        raise UserError(f"a text of {len(ids)} tokens has nothing to score; give at least 2")
    check_ids("text", [ids], model.config.symbols)
    read = _read_at_once(model, context, stride)
    stream = torch.as_tensor(ids, dtype=torch.long)
    head, device, total = model.heads["vocabulary"], device_of(model), 0.0
    with evaluating(model):
        for inputs, labels in _windows(stream, *read, max(1, batch_tokens // read[0])):
            x = model(inputs.to(device)).x
            total += float(head.loss(x, labels.to(device)).total)  # type: ignore[operator]
    return Nats(total, len(ids) - 1)


def _read_at_once(model: Transformer, context: int | None, stride: int | None) -> tuple[int, int]:
    """Inputs of a window (its last token is only foretold), and the stride."""
    most = context_of(model)
    context = most if context is None else context
    if context is None:
        raise UserError("this model has no longest context; give one, such as 1024")
    if context < 2 or (most is not None and context > most):
        raise UserError(f"a context of {context} is not from 2 to the model's {most or 'length'}; choose one that is")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride < context:
        raise UserError(
            f"stride {stride} is not from 1 to {context - 1}, one less than the context; choose one that is"
        )
    return context - 1, stride


def _windows(
    ids: Int[Tensor, "N"], width: int, stride: int, rows: int
) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
    """Inputs and labels, IGNORED where an earlier window has scored, `rows` windows at a time; the last is shorter."""
    count = len(ids) - 1  # tokens to score
    whole = 1 + max(0, count - width) // stride if count >= width else 0
    for first in range(0, whole, rows):
        starts = torch.arange(first, min(first + rows, whole)) * stride
        places = starts[:, None] + torch.arange(width)
        labels = ids[places + 1]
        old = width - stride
        labels[int(first == 0) :, :old] = IGNORED
        yield ids[places], labels
    scored = width + (whole - 1) * stride if whole else 0
    if scored < count:
        start = whole * stride
        labels = ids[start + 1 :].clone()
        labels[: scored - start] = IGNORED
        yield ids[None, start:-1], labels[None]
