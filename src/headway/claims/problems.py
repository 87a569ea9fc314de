"""Synthetic problems for the experiments. Each returns a function that samples a batch of fresh examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from headway.claims.networks import ExampleBatch, SampleBatch
from headway.layout import Layout
from headway.nn.kernels import IGNORE_INDEX


def keep_last_tokens(examples: ExampleBatch, last: int | None) -> ExampleBatch:
    """The examples with only their `last` tokens, as if the state before them were lost."""
    if last is None:
        return examples
    inputs = examples.inputs[:, -last:]
    targets = examples.targets if examples.targets.dim() == 1 else examples.targets[:, -last:]
    return ExampleBatch(inputs, Layout.full(inputs.shape[0], last), targets)


def adding(rows: int, length: int, last: int | None = None) -> SampleBatch:
    """Hochreiter and Schmidhuber 1997, experiment 4: the sum of the two marked numbers, from 0 to 1, one in each half.
    The state before the `last` tokens is lost. A constant answer has an error of 1 / 6.
    """
    layout = Layout.full(rows, length)

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        values = torch.rand(rows, length, generator=source)
        half = length // 2
        first = torch.randint(half, (rows, 1), generator=source)
        second = torch.randint(half, length, (rows, 1), generator=source)
        mask = torch.zeros(rows, length).scatter_(1, first, 1.0).scatter_(1, second, 1.0)
        return keep_last_tokens(ExampleBatch(torch.stack([values, mask], -1), layout, (values * mask).sum(1)), last)

    return sample_batch


def copying(rows: int, n_symbols: int, count: int, delay: int, last: int | None = None) -> SampleBatch:
    """Hochreiter and Schmidhuber 1997, Arjovsky et al. 2016: `count` symbols, `delay` blanks, then a cue for each
    symbol to repeat. Symbols are 0 ... n_symbols - 1, the blank is `n_symbols`, the cue `n_symbols` + 1.
    """
    length = 2 * count + delay
    layout = Layout.full(rows, length)

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        sequence = torch.randint(n_symbols, (rows, count), generator=source)
        ids = torch.full((rows, length), n_symbols)
        ids[:, :count] = sequence
        ids[:, -count:] = n_symbols + 1
        targets = torch.full((rows, length), IGNORE_INDEX)
        targets[:, -count:] = sequence
        return keep_last_tokens(ExampleBatch(ids, layout, targets), last)

    return sample_batch


def recall(rows: int, n_symbols: int, noise: int, distance: int) -> SampleBatch:
    """Recall the first symbol at a cue `distance` tokens later; random other symbols are in between."""

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        first = torch.randint(n_symbols, (rows, 1), generator=source)
        between = torch.randint(n_symbols, n_symbols + noise, (rows, distance - 1), generator=source)
        sign = torch.full((rows, 1), n_symbols + noise)
        return ExampleBatch(torch.cat([first, between, sign], 1), Layout.full(rows, distance + 1), first[:, 0])

    return sample_batch


def recall_marked(rows: int, n_symbols: int, length: int) -> SampleBatch:
    """Recall the last marked symbol. Marked symbols must overwrite the memory, and other symbols must not.

    Symbol s is s, or `n_symbols` + s if it is marked; one in five is. The last token is a cue.
    """

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        ids = torch.randint(n_symbols, (rows, length), generator=source)
        marked = torch.rand(rows, length, generator=source) < 0.2
        marked[:, 0] = True
        last = (marked * torch.arange(length)).argmax(1, keepdim=True)
        sign = torch.full((rows, 1), 2 * n_symbols)
        return ExampleBatch(
            torch.cat([ids + n_symbols * marked, sign], 1), Layout.full(rows, length + 1), ids.gather(1, last)[:, 0]
        )

    return sample_batch


class KeyValuePairs(NamedTuple):
    """Pairs of keys and values, one per position, then a last position that queries `queries` of the keys at once.

    Each of `keys` different keys is written `times` times with new values; the last value counts.
    """

    keys: int
    values: int
    times: int = 1
    queries: int = 1
    possible_keys: int = 32  # number of possible keys

    @property
    def channels(self) -> int:
        """Numbers per position: the key and the value to write, and the queried keys."""
        return self.possible_keys * (1 + self.queries) + self.values

    @property
    def length(self) -> int:
        return self.keys * self.times + 1

    def sample(self, rows: int, source: torch.Generator) -> tuple[ExampleBatch, Int[Tensor, "B A"]]:
        """Examples, and the positions of the answers in each row."""
        num_writes = self.length - 1
        keys = torch.rand(rows, self.possible_keys, generator=source).argsort(1)[:, : self.keys]
        order = torch.rand(rows, num_writes, generator=source).argsort(1) % self.keys
        written_keys = keys.gather(1, order)
        values = torch.randint(self.values, (rows, num_writes), generator=source)
        queried = torch.rand(rows, self.keys, generator=source).argsort(1)[:, : self.queries]
        match = (order[:, None] == queried[:, :, None]) * torch.arange(1, num_writes + 1)
        positions = match.argmax(2)
        inputs = torch.zeros(rows, self.length, self.channels)
        inputs[:, :-1].scatter_(2, written_keys[..., None], 1.0)
        inputs[:, :-1].scatter_(2, self.possible_keys + values[..., None], 1.0)
        slots = self.possible_keys + self.values + self.possible_keys * torch.arange(self.queries)
        inputs[:, -1].scatter_(1, slots + keys.gather(1, queried), 1.0)
        targets = values.gather(1, positions)
        return ExampleBatch(inputs, Layout.full(rows, self.length), targets), positions


def recall_pairs(problem: KeyValuePairs, rows: int) -> SampleBatch:
    """Associative recall."""
    return lambda source: problem.sample(rows, source)[0]


def sum_all(rows: int, length: int) -> SampleBatch:
    """The sum of all numbers, scaled to the variance of a single number, so that a constant answer has an error of 1 /
    12.
    """
    layout = Layout.full(rows, length)

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        values = torch.rand(rows, length, generator=source)
        inputs = torch.stack([values, torch.zeros(rows, length)], -1)
        return ExampleBatch(inputs, layout, (values - 0.5).sum(1) / length**0.5)

    return sample_batch
