"""Row tables for the compiled sampler: settings as numbers, and token counts. A table stays at its address as long as
its rows exist, so a step needs to pass only addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.engine.pool import Pool
from headway.engine.sampling_batch import SampledTokens, SamplingBatch
from headway.engine.sampling_kernels import (
    BIASED,
    BIASED_COUNT,
    BIASES,
    FIELDS,
    FLOATS,
    FREQUENCY,
    MIN_P,
    PENALISED,
    PENALISED_COUNT,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    TIMES,
    TOP_K,
    TOP_P,
    UNIFORM,
)

if TYPE_CHECKING:
    from headway.generate.sampling import Sampling

_LARGEST = np.iinfo(np.int32).max


class Tally:
    """The tokens that penalties apply to, and how often each occurs in the output."""

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        """Prompt tokens start with a count of 0."""
        self._index = {token: index for index, token in enumerate(dict.fromkeys(prompt))}
        self.tokens = np.fromiter(self._index, np.int32, len(self._index))
        self.times = np.zeros(len(self._index), np.int32)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, token: int) -> None:
        """Count one more occurrence."""
        index = self._index.setdefault(token, len(self._index))
        if index == len(self.tokens):
            self.tokens, self.times = (
                np.append(old, np.zeros(index + 8, np.int32)) for old in (self.tokens, self.times)
            )
        self.tokens[index] = token
        self.times[index] += 1

    def copy(self) -> Tally:
        """An independent copy."""
        tally = Tally()
        tally._index, tally.tokens, tally.times = dict(self._index), self.tokens.copy(), self.times.copy()
        return tally


class SamplingTable:
    """The rows in one batch, all with the same settings, as a `SamplingBatch` takes them."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Iterable[int]]) -> None:
        self._bind(np.zeros((len(prompts), FIELDS + FLOATS), np.int64))
        self.fields[:, TOP_K] = min(sampling.top_k or 0, _LARGEST)
        self.floats[:, [TEMPERATURE, TOP_P, MIN_P]] = sampling.temperature, sampling.top_p, sampling.min_p
        self.floats[:, REPETITION] = sampling.repetition_penalty
        self.floats[:, [PRESENCE, FREQUENCY]] = sampling.presence_penalty, sampling.frequency_penalty
        self._tallies: list[Tally] = []
        repeats = sampling.repetition_penalty != 1.0
        if repeats or sampling.presence_penalty or sampling.frequency_penalty:
            self._tallies = [Tally(prompt if repeats else ()) for prompt in prompts]
        biases = sampling.logit_bias or {}
        self._biased = np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)
        self.fields[:, [BIASED, BIASES]] = [part.ctypes.data for part in self._biased]
        self.fields[:, BIASED_COUNT] = len(biases)
        self._note()

    def sample(self, logits: Float[Tensor, "B C"], uniform: np.ndarray, pool: Pool | None) -> SampledTokens:
        """Sample the next token for each row at uniform numbers in [0, 1)."""
        self.floats[:, UNIFORM] = uniform
        return SamplingBatch([(address, row) for row, address in enumerate(self.addresses)]).run(logits, pool)

    def add(self, tokens: Sequence[int]) -> None:
        """Count the token that each row has generated."""
        if self._tallies:
            for tally, token in zip(self._tallies, tokens):
                tally.add(token)
            self._note()

    def after(self, tokens: Sequence[int]) -> SamplingTable:
        """The table for the only row after these tokens."""
        table = self._with([tally.copy() for tally in self._tallies], slice(None))
        for token in tokens:
            table.add([token])
        return table

    def select(self, rows: Sequence[int]) -> SamplingTable:
        """The table for only these rows."""
        return self._with([self._tallies[row] for row in rows] if self._tallies else [], rows)

    def _with(self, tallies: list[Tally], rows: Sequence[int] | slice) -> SamplingTable:
        table = copy(self)
        table._tallies = tallies
        table._bind(self._rows[rows].copy())
        table._note()
        return table

    def _bind(self, rows: np.ndarray) -> None:
        """Use `rows`, int64 [B, FIELDS + FLOATS], whose rows are at `addresses`."""
        self._rows, self.fields, self.floats = rows, rows[:, :FIELDS], rows[:, FIELDS:].view(np.float64)
        first, step = rows.ctypes.data, rows.strides[0]
        self.addresses = [first + step * row for row in range(len(rows))]

    def _note(self) -> None:
        for row, tally in zip(self.fields, self._tallies):
            row[PENALISED], row[TIMES], row[PENALISED_COUNT] = (
                tally.tokens.ctypes.data,
                tally.times.ctypes.data,
                len(tally),
            )
