"""Batches of pairs: sources, the targets that the decoder reads, and the labels that it is to foretell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headway.data import IGNORED, PairBatches
from headway.domains.translation.config import Marks
from headway.layout import Layout
from headway.train import Shard, sharding


@dataclass(frozen=True)
class PairBatch:
    """`target` is begin and a translation's symbols, `labels` the same symbols and end; `tokens` counts labels."""

    source: Int[Tensor, "B S"]
    source_layout: Layout
    target: Int[Tensor, "B T"]
    target_layout: Layout
    labels: Int[Tensor, "B T"]
    tokens: int

    @property
    def computed(self) -> int:
        return self.source.numel() + self.target.numel()

    def to(self, device: torch.device | str) -> Self:
        if self.source.device == torch.device(device):
            return self
        return type(self)(
            self.source.to(device),
            self.source_layout.to(device),
            self.target.to(device),
            self.target_layout.to(device),
            self.labels.to(device),
            self.tokens,
        )


class Sentences(NamedTuple):
    """Sequences of ids as places in one array: int64 [N] starts and lengths. No begin or end is among them."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @staticmethod
    def of(rows: Sequence[Sequence[int]]) -> Sentences:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter((i for row in rows for i in row), np.int32, int(lengths.sum()))
        return Sentences(ids, np.cumsum(lengths) - lengths, lengths)

    def select(self, numbers: np.ndarray) -> Sentences:
        return Sentences(self.ids, self.starts[numbers], self.lengths[numbers])

    def row(self, number: int) -> list[int]:
        start = int(self.starts[number])
        return self.ids[start : start + int(self.lengths[number])].tolist()

    def padded(self, end: int, backwards: bool = False) -> np.ndarray:
        """All of them with `end` after each and after that 0: int64 [N, longest + 1].

        `backwards` turns each around, which moves neither its end nor its padding: [5, 6] becomes [6, 5, end, 0].
        """
        longest = int(self.lengths.max(initial=0))
        steps = np.arange(longest + 1)
        inside = steps < self.lengths[:, None]
        rows = np.zeros((len(self.lengths), longest + 1), np.int64)
        first = (self.starts + self.lengths - 1 if backwards else self.starts)[:, None]
        rows[inside] = self.ids[(first - steps if backwards else first + steps)[inside]]
        rows[np.arange(len(rows)), self.lengths] = end
        return rows


class Pairs:
    """Pairs of sentences, batched. `reverse_source` has the batches hold each source backwards, its end still last."""

    def __init__(self, source: Sentences, target: Sentences, marks: Marks, reverse_source: bool = False) -> None:
        self.source = source
        self.target = target
        self.marks = marks
        self.reverse_source = reverse_source

    def __len__(self) -> int:
        return len(self.source.lengths)

    def batch(self, numbers: np.ndarray) -> PairBatch:
        """The pairs of these numbers, int [B]."""
        source, target = self.source.select(numbers), self.target.select(numbers)
        labels = target.padded(self.marks.end)
        inputs = np.empty_like(labels)
        inputs[:, 0], inputs[:, 1:] = self.marks.begin, labels[:, :-1]
        layout = Layout.padded(torch.from_numpy(target.lengths + 1))
        if not layout.dense:
            labels[np.arange(labels.shape[1]) > target.lengths[:, None]] = IGNORED
        return PairBatch(
            torch.from_numpy(source.padded(self.marks.source_end, self.reverse_source)),
            Layout.padded(torch.from_numpy(source.lengths + 1)),
            torch.from_numpy(inputs),
            layout,
            torch.from_numpy(labels),
            int(target.lengths.sum()) + len(numbers),
        )

    def some(self, limit: int | None) -> Pairs:
        """At most `limit` pairs, spread evenly over all: files are often sorted by length."""
        kept = sharding.spread(np.arange(len(self)), limit)
        return Pairs(self.source.select(kept), self.target.select(kept), self.marks, self.reverse_source)

    def plan(self, batch_tokens: int, seed: int) -> PairBatches:
        return PairBatches(self.source.lengths + 1, self.target.lengths + 1, batch_tokens, seed)

    def endless(self, batch_tokens: int, seed: int, shard: Shard, start: int) -> Iterator[PairBatch]:
        """Batches without end: batch k is the k-th of a row of shuffled epochs, whoever reads it."""
        plan = self.plan(batch_tokens, seed)
        for places in sharding.planned(plan, shard, start):
            yield self.batch(places)

    def once(self, batch_tokens: int, shard: Shard) -> Iterator[PairBatch]:
        """All pairs once, those of like lengths together."""
        for numbers in self.plan(batch_tokens, 0).in_order()[shard.rank :: shard.world]:
            yield self.batch(numbers)
