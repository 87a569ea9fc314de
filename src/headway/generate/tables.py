"""Row tables for the compiled sampler: settings as numbers, and token counts. A table stays at its address as long as
its rows exist, so a step passes only addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.engine.choosing import Choices, Choosing
from headway.engine.drawing import (
    BIASED,
    BIASED_COUNT,
    BIASES,
    FIELDS,
    FREQUENCY,
    MIN_P,
    NUMBERS,
    PRESENCE,
    REPETITION,
    SAID,
    SAID_COUNT,
    TEMPERATURE,
    TIMES,
    TOP_K,
    TOP_P,
    UNIFORM,
)
from headway.engine.pool import Pool

if TYPE_CHECKING:
    from headway.generate.sampling import Sampling

_LARGEST = np.iinfo(np.int32).max


class Tally:
    """The tokens that penalties apply to, and how often the output contains each."""

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        """Tokens of the prompt start with a count of 0."""
        self._places = {symbol: place for place, symbol in enumerate(dict.fromkeys(prompt))}
        self.symbols = np.fromiter(self._places, np.int32, len(self._places))
        self.times = np.zeros(len(self._places), np.int32)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, symbol: int) -> None:
        """Count one more occurrence."""
        place = self._places.setdefault(symbol, len(self._places))
        if place == len(self.symbols):
            self.symbols, self.times = (
                np.append(old, np.zeros(place + 8, np.int32)) for old in (self.symbols, self.times)
            )
        self.symbols[place] = symbol
        self.times[place] += 1

    def copy(self) -> Tally:
        """An independent copy."""
        other = Tally()
        other._places, other.symbols, other.times = dict(self._places), self.symbols.copy(), self.times.copy()
        return other


class DrawTable:
    """The rows of one batch, all with the same settings, as a `SamplingBatch` takes them."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Iterable[int]]) -> None:
        self._place(np.zeros((len(prompts), FIELDS + NUMBERS), np.int64))
        self.fields[:, TOP_K] = min(sampling.top_k or 0, _LARGEST)
        self.numbers[:, [TEMPERATURE, TOP_P, MIN_P]] = sampling.temperature, sampling.top_p, sampling.min_p
        self.numbers[:, REPETITION] = sampling.repetition_penalty
        self.numbers[:, [PRESENCE, FREQUENCY]] = sampling.presence_penalty, sampling.frequency_penalty
        self._tallies: list[Tally] = []
        repeats = sampling.repetition_penalty != 1.0
        if repeats or sampling.presence_penalty or sampling.frequency_penalty:
            self._tallies = [Tally(prompt if repeats else ()) for prompt in prompts]
        biases = sampling.logit_bias or {}
        self._biased = np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)
        self.fields[:, [BIASED, BIASES]] = [part.ctypes.data for part in self._biased]
        self.fields[:, BIASED_COUNT] = len(biases)
        self._note()

    def choose(self, logits: Float[Tensor, "B C"], uniform: np.ndarray, pool: Pool | None) -> Choices:
        """Sample the next token of each row at uniform numbers in [0, 1)."""
        self.numbers[:, UNIFORM] = uniform
        return Choosing([(address, place) for place, address in enumerate(self.addresses)]).run(logits, pool)

    def add(self, symbols: Sequence[int]) -> None:
        """Count the token that each row has generated."""
        if self._tallies:
            for tally, symbol in zip(self._tallies, symbols):
                tally.add(symbol)
            self._note()

    def after(self, symbols: Sequence[int]) -> DrawTable:
        """The table of the only row after these tokens."""
        other = self._with([tally.copy() for tally in self._tallies], slice(None))
        for symbol in symbols:
            other.add([symbol])
        return other

    def select(self, rows: Sequence[int]) -> DrawTable:
        """The table of these rows alone."""
        return self._with([self._tallies[row] for row in rows] if self._tallies else [], rows)

    def _with(self, tallies: list[Tally], rows: Sequence[int] | slice) -> DrawTable:
        other = copy(self)
        other._tallies = tallies
        other._place(self._whole[rows].copy())
        other._note()
        return other

    def _place(self, whole: np.ndarray) -> None:
        """Use `rows`, int64 [B, FIELDS + FLOATS]; `addresses` are those of its rows."""
        self._whole, self.fields, self.numbers = whole, whole[:, :FIELDS], whole[:, FIELDS:].view(np.float64)
        first, step = whole.ctypes.data, whole.strides[0]
        self.addresses = [first + step * row for row in range(len(whole))]

    def _note(self) -> None:
        for row, tally in zip(self.fields, self._tallies):
            row[SAID], row[TIMES], row[SAID_COUNT] = tally.symbols.ctypes.data, tally.times.ctypes.data, len(tally)
