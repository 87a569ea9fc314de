"""Log probabilities of given symbols (teacher forcing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headway.errors import UserError
from headway.generate.prompts import (
    Ids,
    batches,
    check_ids,
    check_sources,
    context_of,
    device_of,
    evaluating,
    pad,
)
from headway.kernels import IGNORED
from headway.models import EncoderDecoder, Transformer


class _Window(NamedTuple):
    """A stretch of a text that is read at once: `labels` follow `inputs`, IGNORED where another window scores them."""

    text: int
    inputs: Ids
    labels: Ids
    source: Ids = ()


@torch.inference_mode()
def score_ids(
    model: Transformer, texts: Sequence[Ids], *, stride: int | None = None, batch_tokens: int = 8192
) -> list[list[float]]:
    """log p of each symbol given those before it, in nats, for all but the first symbol of each text.

    A text longer than the context is read in windows of the context that begin every `stride` symbols (half the context
    by default): each symbol is scored once, with at least context - stride symbols before it where the text has them.
    """
    check_ids("text", texts, model.config.symbols)
    context = context_of(model)
    step = _stride(stride, context)
    windows = [w for i, text in enumerate(texts) if len(text) > 1 for w in _windows(i, text, context, step)]

    def read(batch: list[_Window]) -> Tensor:
        ids, layout = pad([w.inputs for w in batch], device_of(model))
        return model(ids, layout).x

    return _score(model, windows, read, len(texts), batch_tokens)


@torch.inference_mode()
def score_targets(
    model: EncoderDecoder,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
    *,
    begin: int,
    end: int,
    batch_tokens: int = 8192,
) -> list[list[float]]:
    """log p of each symbol of each target given its source, in nats, and of the `end` after it."""
    if len(sources) != len(targets):
        raise UserError(f"{len(sources)} sources do not match {len(targets)} targets; give one for each")
    if not all(len(source) for source in sources):
        raise UserError("a source of 0 tokens is empty; leave it out")
    check_sources(model, sources)
    check_ids("target", targets, model.config.symbols)
    context, longest = context_of(model), max(map(len, targets), default=0) + 1
    if context is not None and longest > context:
        raise UserError(f"a target of {longest} tokens, its end included, exceeds the context of {context}; split it")
    windows = [_Window(i, [begin, *t], [*t, end], s) for i, (s, t) in enumerate(zip(sources, targets))]

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
    texts: int,
    batch_tokens: int,
) -> list[list[float]]:
    scored: list[list[float]] = [[] for _ in windows]
    head = model.heads["vocabulary"]
    with evaluating(model):
        for chosen in batches([len(w.inputs) + len(w.source) for w in windows], batch_tokens):
            batch = [windows[i] for i in chosen]
            x = read(batch)
            labels = torch.full(x.shape[:2], IGNORED)
            for row, window in zip(labels, batch):
                row[: len(window.labels)] = torch.tensor(window.labels)
            rows = head.log_probabilities(x, labels.to(x.device)).tolist()  # type: ignore[operator]
            for i, window, row in zip(chosen, batch, rows):
                scored[i] = [value for value, label in zip(row, window.labels) if label != IGNORED]
    results: list[list[float]] = [[] for _ in range(texts)]
    for window, values in zip(windows, scored):
        results[window.text] += values
    return results


def _stride(stride: int | None, context: int | None) -> int:
    if context is None:
        return 1  # nothing is longer than the context
    if stride is None:
        return max(1, context // 2)
    if not 1 <= stride <= context:
        raise UserError(f"stride {stride} is not from 1 to the context of {context}; choose one that is")
    return stride


def _windows(number: int, text: Ids, context: int | None, stride: int) -> list[_Window]:
    count = len(text) - 1  # symbols to score
    if context is None or count <= context:
        return [_Window(number, text[:-1], text[1:])]
    windows, scored = [], 0
    for start in range(0, count, stride):
        stop = min(start + context, count)
        labels = [IGNORED] * (scored - start) + list(text[scored + 1 : stop + 1])
        windows.append(_Window(number, text[start:stop], labels))
        scored = stop
        if stop == count:
            break
    return windows
