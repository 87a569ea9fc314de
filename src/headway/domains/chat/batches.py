"""Batches of conversations: rows of several, or two endings of each of several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.data import IGNORED, PairBatches
from headway.data.marked import MarkedCache, WholeRows
from headway.layout import Layout
from headway.train import Shard, sharding


@dataclass(frozen=True)
class ChatBatch:
    """`labels` are the symbols that follow `inputs` where the assistant says them, -100 elsewhere."""

    inputs: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    layout: Layout
    tokens: int

    @property
    def computed(self) -> int:
        return self.inputs.numel()

    def to(self, device: torch.device | str) -> Self:
        if self.inputs.device == torch.device(device):
            return self
        return type(self)(self.inputs.to(device), self.labels.to(device), self.layout.to(device), self.tokens)


class ChatRows:
    """Batches of rows by number."""

    def __init__(self, rows: WholeRows) -> None:
        self.rows = rows

    def batch(self, numbers: np.ndarray) -> ChatBatch:
        """The rows of these numbers, int [B]."""
        inputs, labels, positions = map(torch.from_numpy, self.rows.windows(numbers))
        return ChatBatch(inputs, labels, Layout(positions), int((labels != IGNORED).sum()))

    def endless(self, size: int, seed: int, shard: Shard, start: int) -> Iterator[ChatBatch]:
        """Batches of `size` rows without end: batch k holds the places k size, ..., (k + 1) size - 1 of a shuffled
        stream of epochs, whoever reads it.
        """
        for _, rows in sharding.endless(len(self.rows), size, seed, shard, start):
            yield self.batch(rows)

    def once(self, size: int, shard: Shard) -> Iterator[ChatBatch]:
        """All rows in order, in batches of at most `size`."""
        return map(self.batch, sharding.once(len(self.rows), size, shard))


@dataclass(frozen=True)
class ChoiceBatch:
    """B choices as 2 B rows: the chosen endings, then the rejected ones, each after its prompt.

    `reference` are their log probabilities by the model that training starts from; `tokens` counts choices, which is
    what the loss is divided by.
    """

    inputs: Int[Tensor, "R T"]
    labels: Int[Tensor, "R T"]
    layout: Layout
    reference: Float[Tensor, "2 B"]

    @property
    def tokens(self) -> int:
        return self.reference.shape[1]

    @property
    def computed(self) -> int:
        return self.inputs.numel()

    def to(self, device: torch.device | str) -> Self:
        if self.inputs.device == torch.device(device):
            return self
        moved = (part.to(device) for part in (self.inputs, self.labels, self.layout, self.reference))
        return type(self)(*moved)  # type: ignore[arg-type]


class Choices:
    """Batches of choices. `samples` int64 [N] are numbers in the cache."""

    def __init__(self, cache: MarkedCache, samples: np.ndarray) -> None:
        self.cache = cache
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def first(self, limit: int | None) -> Choices:
        return Choices(self.cache, self.samples[:limit])

    def batch(self, places: np.ndarray, reference: Float[Tensor, "N 2"]) -> ChoiceBatch:
        """The choices at these places, int [B]; `reference` is that of all in the cache."""
        samples = self.samples[places]
        parts = [self.cache.part(int(sample), ending) for ending in (0, 1) for sample in samples]
        layout = Layout.padded([len(ids) - 1 for ids, _ in parts])
        inputs = torch.zeros(len(parts), layout.length, dtype=torch.long)
        labels = torch.full_like(inputs, IGNORED)
        for row, (ids, marks) in enumerate(parts):
            symbols = torch.from_numpy(ids.astype(np.int64))
            inputs[row, : len(symbols) - 1] = symbols[:-1]
            learnt = torch.from_numpy(marks[1:].astype(bool))
            labels[row, : len(symbols) - 1][learnt] = symbols[1:][learnt]
        return ChoiceBatch(inputs, labels, layout, reference[torch.from_numpy(samples)].T)

    def plan(self, batch_tokens: int, seed: int) -> PairBatches:
        """Choices of like lengths together; `batch_tokens` are those of both endings."""
        chosen, rejected = (self.cache.lengths[self.samples] - 1).T
        return PairBatches(chosen, rejected, batch_tokens // 2, seed)
