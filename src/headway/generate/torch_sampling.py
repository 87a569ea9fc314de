"""Samples the next token of sequences with torch, all rows in the same tensors, which suits an accelerator; or with
compiled code (`compiled_sampling`), which samples the same tokens: always if the engine computed the logits or a rule
restricts the tokens, and on a CPU also for torch models with large vocabularies.

Filters are thresholds: equally probable tokens are kept or dropped together, and their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headway.generate.sampling import Sampler, Sampling
from headway.generate.sequences import Event
from headway.layout import to_device

if TYPE_CHECKING:
    from headway.engine.pool import Pool

_LARGE_VOCAB = 1 << 14  # vocabulary size from which compiled code samples on a CPU, even from torch logits
_NUCLEUS = 256  # tokens sorted first for top_p: a nucleus is rarely larger, and sorting the whole vocabulary is slow
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e30  # temperatures beyond these make no difference, and would overflow


def argmax(logits: Float[Tensor, "B C"]) -> Int[Tensor, "B"]:
    """The most probable token in each row; the first one if several are equal."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1).indices
    return torch.from_numpy(logits.numpy().argmax(-1))  # ten times as fast as torch's


def sample(logits: Float[Tensor, "B C"], filters: Sampling, uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Sample a token per row, by inverting the cumulative distribution at `uniform`, numbers in [0, 1).

    Rows with a NaN or +inf have no distribution, so their token is arbitrary. A token with weight 0 is never sampled,
    because the target stays below the total.
    """
    cumulative = weigh(logits, filters).cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def weigh(logits: Float[Tensor, "B C"], filters: Sampling) -> Float[Tensor, "B C"]:
    """Unnormalised probabilities, 0 for tokens that the filters drop."""
    logits = logits / min(max(filters.temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE)
    if filters.top_k is not None and filters.top_k < logits.shape[-1]:
        threshold = logits.topk(filters.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if filters.min_p > 0:
        threshold = logits.amax(-1, keepdim=True) + math.log(filters.min_p)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    weights = logits.softmax(-1)
    if filters.top_p < 1:
        vocab_size = weights.shape[-1]
        # A GPU sorts everything at once, because asking it whether a part is enough takes longer.
        on_cpu = logits.device.type == "cpu"
        for count in (min(_NUCLEUS, vocab_size), vocab_size) if on_cpu else (vocab_size,):
            largest = weights.topk(count).values
            inside = largest.cumsum(-1) - largest < filters.top_p
            if count == vocab_size or not bool(inside[:, -1].any()):
                break
        smallest = largest.gather(1, (inside.sum(-1, keepdim=True) - 1).clamp_(min=0))  # NaN: no nucleus
        weights = weights.masked_fill(weights < smallest, 0.0)
    return weights


def sample_rows(
    logits: Float[Tensor, "N C"], rows: Sequence[int], samplers: Sequence[Sampler], pool: Pool | None = None
) -> list[Event]:
    """Sample the next token of each sequence from its row of the logits, which may cover only the first part of the
    vocabulary. `pool` contains the threads of the engine that computed the logits; they then also sample. Without it,
    the samplers must have equal settings. Compiled code follows rules.
    """
    follows_rules = any(sampler.rule is not None for sampler in samplers)
    if pool is not None or follows_rules or (logits.device.type == "cpu" and logits.shape[1] >= _LARGE_VOCAB):
        from headway.generate.compiled_sampling import StepSampling  # imports LLVM, which torch does not need

        sampling = StepSampling(samplers, rows, logits.shape[1])
        sampling.batch.run(logits.float().cpu(), pool)
        return sampling.events()
    groups: list[list[int]] = []  # of samplers with equal settings
    for index, sampler in enumerate(samplers):
        alike = [group for group in groups if samplers[group[0]].sampling == sampler.sampling]
        if alike:
            alike[0].append(index)
        else:
            groups.append([index])
    parts = [_sample_group(logits, [rows[i] for i in group], [samplers[i] for i in group]) for group in groups]
    width = max(part.shape[2] for part in parts)
    packed = parts[0] if len(parts) == 1 else torch.cat([F.pad(part, (0, width - part.shape[2])) for part in parts], 1)
    # One transfer: the only time that a step waits for a GPU.
    tokens, bits = packed.cpu()
    events: list[Event] = [Event()] * len(rows)
    order = [index for group in groups for index in group]
    for index, row, numbers in zip(order, tokens.tolist(), bits.view(torch.float32).tolist()):
        event, top = Event(id=row[0], logprob=numbers[0]), samplers[index].top
        event.top = list(zip(row[1 : 1 + top], numbers[1 : 1 + top]))
        events[index] = event
    return events


def _sample_group(
    logits: Float[Tensor, "N C"], rows: Sequence[int], samplers: Sequence[Sampler]
) -> Int[Tensor, "2 G W"]:
    """Sample with samplers of equal settings: their tokens and the most probable ones, and the bits of their log
    probabilities.
    """
    settings = samplers[0].sampling
    if len(rows) != len(logits) or any(row != index for index, row in enumerate(rows)):
        logits = logits[to_device(torch.tensor(rows), logits.device)]
    logits = logits.float()
    adjusted = _adjust(logits, samplers) if settings.adjusts else logits
    if settings.temperature == 0:
        chosen = argmax(adjusted)
    else:
        uniform = np.array([sampler.uniform() for sampler in samplers], np.float32)
        chosen = sample(adjusted, settings, to_device(torch.from_numpy(uniform), logits.device))
    logprobs = logits.log_softmax(-1)  # row by row: the result does not depend on the shape of the batch
    best = logprobs.topk(max(sampler.top for sampler in samplers))
    ids = torch.cat([chosen[:, None], best.indices], 1).int()
    values = torch.cat([logprobs.gather(1, chosen[:, None]), best.values], 1)
    return torch.stack([ids, values.view(torch.int32)])


def _adjust(logits: Float[Tensor, "B C"], samplers: Sequence[Sampler]) -> Float[Tensor, "B C"]:
    """The logits after penalties and biases."""
    settings, device, vocab_size = samplers[0].sampling, logits.device, logits.shape[1]
    tallies = [(row, sampler.tally) for row, sampler in enumerate(samplers) if sampler.tally]
    if tallies:
        rows = np.concatenate([np.full(len(tally), row) for row, tally in tallies])
        tokens = np.concatenate([tally.tokens[: len(tally)] for _, tally in tallies])
        times = np.concatenate([tally.times[: len(tally)] for _, tally in tallies])
        known = tokens < vocab_size
        parts = (rows[known].astype(np.int64), tokens[known].astype(np.int64), times[known].astype(np.float32))
        row, token, counts = to_device(tuple(map(torch.from_numpy, parts)), device)
        values = logits[row, token]
        if settings.repetition_penalty != 1.0:
            penalty = settings.repetition_penalty
            values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - settings.presence_penalty * (counts > 0) - settings.frequency_penalty * counts
        logits = logits.index_put((row, token), values)
    biases = {token: bias for token, bias in (settings.logit_bias or {}).items() if token < vocab_size}
    if biases:
        bias = torch.zeros(vocab_size)
        bias[list(biases)] = torch.tensor(list(biases.values()))
        logits = logits + to_device(bias, device)
    return logits
