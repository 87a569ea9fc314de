"""Samples the next token for many sequences, each with its own sampling settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.engine.pool import Pool
from headway.engine.sampling_batch import SamplingBatch
from headway.engine.sampling_kernels import MASK, TOP, UNIFORM
from headway.errors import UserError
from headway.generate.masks import MaskBudget, fill_masks
from headway.generate.sampling import Sampler, Sampling, uniforms
from headway.generate.sampling_table import SamplingTable
from headway.generate.score import TokenScore
from headway.generate.session import Event

_AHEAD = 64  # uniform numbers generated at once; generating one takes nearly as long


class Rule(Protocol):
    """A constraint on one sequence's tokens."""

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits for tokens that are allowed next, int32 [ceil(C / 32)], lowest bit first."""
        ...

    def take(self, token: int) -> None:
        """Advance past the sampled token, which was allowed; also called for an end token."""
        ...


class SequenceSampler:
    """Samples one sequence token by token. `sampler` has only this row and samples with the engine."""

    def __init__(self, sampler: Sampler, rule: Rule | None, top: int, vocab_size: int) -> None:
        """`top` is how many of the most probable tokens to report with each sampled one."""
        assert sampler.table is not None
        self.rule, self.top, self._table, self._keys = rule, top, sampler.table, sampler.keys
        [self.address] = self._table.addresses
        self.step = 0
        self._fields, self._floats = self._table.fields[0], self._table.floats[0]
        self._mask = np.zeros(0 if rule is None else -(-vocab_size // 32), np.int32)
        self._fields[TOP], self._fields[MASK] = top, self._mask.ctypes.data if rule is not None else 0
        self.masks = None if rule is None else MaskBudget(self._allow)
        self._set_uniform()

    def _allow(self) -> None:
        """Set the mask to the tokens that the rule allows. Raises UserError if the rule fails."""
        assert self.rule is not None
        self._mask[:] = 0
        self.rule.fill(self._mask)

    def take(self, token: int) -> None:
        """Continue after this token."""
        self.step += 1
        self._set_uniform()
        self._table.add([token])
        if self.rule is not None:
            self.rule.take(token)

    def _set_uniform(self) -> None:
        """Store the uniform number for the next token."""
        offset = self.step % _AHEAD
        if offset == 0:
            self._uniforms = uniforms(self._keys, np.arange(self.step, self.step + _AHEAD, dtype=np.uint64)).tolist()
        self._floats[UNIFORM] = self._uniforms[offset]


class StepSampling:
    """Samples the next token for several sequences from the logits of one step, just as each sampler would on its own.
    Pass `batch` to the engine, then read `events`.
    """

    def __init__(self, samplers: Sequence[SequenceSampler], logit_rows: Sequence[int]) -> None:
        self._failed: dict[int, UserError] = {}
        if any(sampler.masks is not None for sampler in samplers):
            self._failed = fill_masks([sampler.masks for sampler in samplers])
        self._top_counts = [sampler.top for sampler in samplers]
        rows = [(sampler.address, row) for sampler, row in zip(samplers, logit_rows)]
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


def sample_rows(
    logits: Float[Tensor, "N C"], logit_rows: Sequence[int], samplers: Sequence[SequenceSampler], pool: Pool
) -> list[Event]:
    """`StepSampling.events` from existing logits."""
    choice = StepSampling(samplers, logit_rows)
    choice.batch.run(logits, pool)
    return choice.events()


def score_tokens(
    logits: Float[Tensor, "N C"], logit_rows: Sequence[int], ids: Sequence[int], top: int, pool: Pool
) -> list[TokenScore]:
    """Score one id per row of the logits, and report the `top` most probable tokens. The sampling kernel computes the
    log probabilities, so they equal those of a token sampled there, bit for bit.
    """
    count, vocab_size = len(ids), logits.shape[1]
    tokens, table = np.array(ids), SamplingTable(Sampling(temperature=0), [()] * count)
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
