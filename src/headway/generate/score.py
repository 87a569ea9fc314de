"""Token log probabilities (teacher forcing), and the perplexity of long documents in overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.errors import UserError
from headway.generate.prompts import Ids, batches, check_ids, check_sources, context_of, device_of, pad
from headway.nn.kernels import IGNORE_INDEX
from headway.nn.models import EncoderDecoder, Transformer, evaluation_mode


class TokenScore(NamedTuple):
    """How well a model predicts one token: its log probability in nats, its rank (1 for the most probable token), and
    the most probable tokens with their log probabilities, in decreasing order.
    """

    id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class _Window(NamedTuple):
    """Part of a sequence that is processed at once. `labels` follow `inputs`, and are IGNORED where another window
    scores them.
    """

    sequence: int
    inputs: Ids
    labels: Ids
    source: Ids = ()


@torch.inference_mode()
def score_ids(
    model: Transformer, sequences: Sequence[Ids], *, stride: int | None = None, batch_tokens: int = 8192
) -> list[list[float]]:
    """log p of each token given the tokens before it, in nats, for all but the first token in each sequence.

    A sequence longer than the context is processed in windows of that length that start every `stride` tokens (half the
    context by default). Each token is scored once, after at least context - stride tokens if there are that many.
    """
    check_ids("sequence", sequences, model.config.vocab_size)
    context = context_of(model)
    if context is None:
        stride = 1  # there is no context limit
    elif stride is None:
        stride = max(1, context // 2)
    elif not 1 <= stride <= context:
        raise UserError(f"stride is {stride}; use 1 to {context}, the context")
    windows = [
        w for i, sequence in enumerate(sequences) if len(sequence) > 1 for w in _windows(i, sequence, context, stride)
    ]

    def read(batch: list[_Window]) -> Tensor:
        ids, layout = pad([w.inputs for w in batch], device_of(model))
        return model(ids, layout).x

    return _score(model, windows, read, len(sequences), batch_tokens)


@torch.inference_mode()
def score_prompt(model: Transformer, ids: Ids, top: int) -> list[TokenScore]:
    """Score every token but the first, and report the `top` most probable ones. The log probabilities equal those from
    `score_ids`.
    """
    check_ids("prompt", [ids], model.config.vocab_size)
    if len(ids) < 2:
        return []
    inputs, layout = pad([ids[:-1]], device_of(model))
    with evaluation_mode(model):
        scores = model.heads["vocabulary"](model(inputs, layout).x[0]).log_softmax(-1)  # type: ignore[operator]
    logprobs = scores.gather(1, torch.tensor(ids[1:], device=scores.device)[:, None])
    ranks = (scores > logprobs).sum(1) + 1
    values, tokens = scores.topk(min(top, scores.shape[-1]))
    tops = [list(zip(*pair)) for pair in zip(tokens.tolist(), values.tolist())]
    return list(map(TokenScore, ids[1:], logprobs[:, 0].tolist(), ranks.tolist(), tops))


@torch.inference_mode()
def score_targets(
    model: EncoderDecoder,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
    *,
    bos: int,
    eos: int,
    batch_tokens: int = 8192,
) -> list[list[float]]:
    """log p of each token in each target given its source, and of the `eos` after it, in nats."""
    if len(sources) != len(targets):
        raise UserError(f"{len(sources)} sources do not match {len(targets)} targets; pass one source per target")
    if not all(len(source) for source in sources):
        raise UserError("a source has 0 tokens; remove it")
    check_sources(model, sources)
    check_ids("target", targets, model.config.vocab_size)
    context, max_length = context_of(model), max(map(len, targets), default=0) + 1
    if context is not None and max_length > context:
        raise UserError(f"a target of {max_length} tokens, including eos, exceeds the context of {context}; split it")
    windows = [_Window(i, [bos, *t], [*t, eos], s) for i, (s, t) in enumerate(zip(sources, targets))]

    def read(batch: list[_Window]) -> Tensor:
        device = device_of(model)
        source, source_layout = pad([w.source for w in batch], device)
        ids, layout = pad([w.inputs for w in batch], device)
        return model(source, source_layout, ids, layout).x

    return _score(model, windows, read, len(targets), batch_tokens)


def _score(
    model: Transformer | EncoderDecoder,
    windows: list[_Window],
    read: Callable[[list[_Window]], Float[Tensor, "B T D"]],
    count: int,
    batch_tokens: int,
) -> list[list[float]]:
    scored: list[list[float]] = [[] for _ in windows]
    head = model.heads["vocabulary"]
    with evaluation_mode(model):
        for chosen in batches([len(w.inputs) + len(w.source) for w in windows], batch_tokens):
            batch = [windows[i] for i in chosen]
            x = read(batch)
            labels = torch.full(x.shape[:2], IGNORE_INDEX)
            for row, window in zip(labels, batch):
                row[: len(window.labels)] = torch.tensor(window.labels)
            rows = head.log_probabilities(x, labels.to(x.device)).tolist()  # type: ignore[operator]
            for i, window, row in zip(chosen, batch, rows):
                scored[i] = [logprob for logprob, label in zip(row, window.labels) if label != IGNORE_INDEX]
    results: list[list[float]] = [[] for _ in range(count)]
    for window, values in zip(windows, scored):
        results[window.sequence] += values
    return results


def _windows(index: int, sequence: Ids, context: int | None, stride: int) -> list[_Window]:
    count = len(sequence) - 1  # tokens to score
    if context is None or count <= context:
        return [_Window(index, sequence[:-1], sequence[1:])]
    windows, scored = [], 0
    for start in range(0, count, stride):
        stop = min(start + context, count)
        labels = [IGNORE_INDEX] * (scored - start) + list(sequence[scored + 1 : stop + 1])
        windows.append(_Window(index, sequence[start:stop], labels))
        scored = stop
        if stop == count:
            break
    return windows


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
    """-log p of every token but the first, in windows of `context` tokens, including the predicted token.

    Windows start every `stride` tokens (half the context by default) and score only tokens that no earlier window
    scored. All tokens except those in the first window follow at least context - stride tokens. A stride of context - 1
    cuts the sequence into windows that share one token; a stride of 1 gives every token the full context. `context`
    defaults to the model's. Raises UserError for a sequence with fewer than two tokens, and for a stride outside 1 to
    context - 1.
    """
    if len(ids) < 2:
        raise UserError(f"cannot score a sequence of {len(ids)} tokens; pass at least 2")
    check_ids("sequence", [ids], model.config.vocab_size)
    limit = context_of(model)
    context = limit if context is None else context
    if context is None:
        raise UserError("this model has no context limit; pass a context, such as 1024")
    if context < 2 or (limit is not None and context > limit):
        raise UserError(f"context is {context}; use at least 2 and at most the model's {limit or 'limit'}")
    width = context - 1  # inputs per window, because its last token is only predicted
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride < context:
        raise UserError(f"stride is {stride}; use 1 to {width}, one less than the context")
    stream = torch.as_tensor(ids, dtype=torch.long)
    head, device, total = model.heads["vocabulary"], device_of(model), 0.0
    with evaluation_mode(model):
        for inputs, labels in _strides(stream, width, stride, max(1, batch_tokens // width)):
            x = model(inputs.to(device)).x
            total += float(head.loss(x, labels.to(device)).total)  # type: ignore[operator]
    return Nats(total, len(ids) - 1)


def _strides(
    ids: Int[Tensor, "N"], width: int, stride: int, rows: int
) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
    """Inputs and labels, IGNORED where an earlier window scored, for `rows` windows at a time. The last window is
    shorter.
    """
    count = len(ids) - 1  # tokens to score
    full = 1 + max(0, count - width) // stride if count >= width else 0
    for first in range(0, full, rows):
        starts = torch.arange(first, min(first + rows, full)) * stride
        indices = starts[:, None] + torch.arange(width)
        labels = ids[indices + 1]
        old = width - stride
        labels[int(first == 0) :, :old] = IGNORE_INDEX
        yield ids[indices], labels
    scored = width + (full - 1) * stride if full else 0
    if scored < count:
        start = full * stride
        labels = ids[start + 1 :].clone()
        labels[: scored - start] = IGNORE_INDEX
        yield ids[None, start:-1], labels[None]
