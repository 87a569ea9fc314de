"""Sampling with compiled code, which reads settings as rows of numbers; and scores of given tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.engine.pool import Pool
from headway.engine.sampling_batch import SamplingBatch
from headway.engine.sampling_kernels import (
    BIASED,
    BIASED_COUNT,
    BIASES,
    FIELDS,
    FLOATS,
    FREQUENCY,
    MASK,
    MIN_P,
    PENALISED,
    PENALISED_COUNT,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    TIMES,
    TOP,
    TOP_K,
    TOP_P,
    UNIFORM,
)
from headway.errors import UserError
from headway.generate.masks import MaskBudget, fill_masks
from headway.generate.sampling import Sampler, Sampling
from headway.generate.score import TokenScore
from headway.generate.sequences import Event

_LARGEST = np.iinfo(np.int32).max


class SamplingTable:
    """`count` rows with the same settings, as a `SamplingBatch` takes them."""

    def __init__(self, sampling: Sampling, count: int) -> None:
        rows = np.zeros((count, FIELDS + FLOATS), np.int64)
        self.fields, self.floats = rows[:, :FIELDS], rows[:, FIELDS:].view(np.float64)
        self.addresses = [rows.ctypes.data + rows.strides[0] * row for row in range(count)]
        self.fields[:, TOP_K] = min(sampling.top_k or 0, _LARGEST)
        self.floats[:, [TEMPERATURE, TOP_P, MIN_P]] = sampling.temperature, sampling.top_p, sampling.min_p
        self.floats[:, REPETITION] = sampling.repetition_penalty
        self.floats[:, [PRESENCE, FREQUENCY]] = sampling.presence_penalty, sampling.frequency_penalty
        biases = sampling.logit_bias or {}
        self._biased = np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)
        self.fields[:, [BIASED, BIASES]] = [part.ctypes.data for part in self._biased]
        self.fields[:, BIASED_COUNT] = len(biases)


class CompiledSampler:
    """The numbers of a `Sampler` for compiled code."""

    def __init__(self, sampler: Sampler, vocab_size: int) -> None:
        self._sampler, table = sampler, SamplingTable(sampler.sampling, 1)
        [self.address], self._table = table.addresses, table
        self._fields, self._floats = table.fields[0], table.floats[0]
        self._mask = np.zeros(0 if sampler.rule is None else -(-vocab_size // 32), np.int32)
        self._fields[TOP] = sampler.top
        self._fields[MASK] = 0 if sampler.rule is None else self._mask.ctypes.data
        self.masks = None if sampler.rule is None else MaskBudget(self._fill_mask)

    def _fill_mask(self) -> None:
        """Set the mask to the tokens that the rule allows. Raises UserError if the rule fails."""
        assert self._sampler.rule is not None
        self._mask[:] = 0
        self._sampler.rule.fill(self._mask)

    def update(self) -> None:
        """Write the numbers for the next token."""
        self._floats[UNIFORM] = self._sampler.uniform()
        if (tally := self._sampler.tally) is not None:
            self._fields[PENALISED], self._fields[TIMES] = tally.tokens.ctypes.data, tally.times.ctypes.data
            self._fields[PENALISED_COUNT] = len(tally)


class StepSampling:
    """Samples the next token of several sequences from the logits of one step, just as each sampler would on its own.
    Pass `batch` to the engine, then read `events`.
    """

    def __init__(self, samplers: Sequence[Sampler], logit_rows: Sequence[int], vocab_size: int) -> None:
        compiled: list[CompiledSampler] = []
        for sampler in samplers:
            if sampler.compiled is None:
                sampler.compiled = CompiledSampler(sampler, vocab_size)
            sampler.compiled.update()
            compiled.append(sampler.compiled)
        self._failed: dict[int, UserError] = {}
        if any(row.masks is not None for row in compiled):
            self._failed = fill_masks([row.masks for row in compiled])
        self._top_counts = [sampler.top for sampler in samplers]
        rows = [(row.address, logit_row) for row, logit_row in zip(compiled, logit_rows)]
        self.batch = SamplingBatch(rows, max(self._top_counts, default=0))

    def events(self) -> list[Event]:
        """The sampled token of each sequence; no id if its rule allows no token, or failed with an `error`."""
        tokens, logprobs, top, top_logprobs = self.batch.choices
        events = [
            Event() if token < 0 else Event(id=token, logprob=logprob)
            for token, logprob in zip(tokens.tolist(), logprobs.tolist())
        ]
        for number, count in enumerate(self._top_counts):
            if count and events[number].id is not None:
                events[number].top = list(zip(top[number, :count].tolist(), top_logprobs[number, :count].tolist()))
        for number, error in self._failed.items():
            events[number] = Event(error=error)
        return events


def score_tokens(
    logits: Float[Tensor, "N C"], logit_rows: Sequence[int], ids: Sequence[int], top: int, pool: Pool
) -> list[TokenScore]:
    """Score one id per row of the logits, and report the `top` most probable tokens. The sampling kernel computes the
    log probabilities, so they equal those of a token sampled there, bit for bit.
    """
    count, vocab_size = len(ids), logits.shape[1]
    tokens, table = np.array(ids), SamplingTable(Sampling(temperature=0), count)
    masks = np.zeros((count, -(-vocab_size // 32)), np.uint32)  # each mask allows one token
    masks[np.arange(count), tokens // 32] = np.uint32(1) << (tokens % 32).astype(np.uint32)
    table.fields[:, MASK] = masks.ctypes.data + masks.strides[0] * np.arange(count)
    table.fields[:, TOP] = top
    chosen, logprobs, top_ids, values = SamplingBatch(list(zip(table.addresses, logit_rows)), top).run(logits, pool)
    logprobs[chosen != tokens] = -np.inf  # a logit of -inf, which a mask never allows
    rows, index = logits[list(logit_rows)], torch.from_numpy(tokens)
    ranks = (rows > rows.gather(1, index[:, None])).sum(1) + 1
    tops = [list(zip(*pair)) for pair in zip(top_ids.tolist(), values.tolist())]
    return list(map(TokenScore, ids, logprobs.tolist(), ranks.tolist(), tops if top else [[] for _ in ids]))
