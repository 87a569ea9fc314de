"""Training batches in the order of shards: whole shards for each micro-batch of a step, and a shuffle over a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_order import ShardOrder
from headway.data.prepared.shard_reader import MappedShards
from headway.data.shuffling import PairBatches
from headway.data.unlabelled_files import UnlabelledPart
from headway.learn.examples import IndexedExamples, RngKey, Shard, TrainingOrder
from headway.learn.recipe import Recipe

RowsAt = Callable[[int, Int[np.ndarray, "N"]], Int[np.ndarray, "N"]]
"""The rows at ascending positions in the endless stream of a place."""


@dataclass(frozen=True)
class PlacedBatches:
    """Batches of `size` of `count` rows: batch k is number k // places of place k % places, a micro-batch of a step."""

    rows_at: RowsAt
    count: int
    size: int
    places: int

    @property
    def epoch(self) -> float:
        """The number of batches per epoch."""
        return self.count / self.size

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[RngKey, Int[np.ndarray, "B"]]]:
        for batch_index in shard.indices(start):
            number, place = divmod(batch_index, self.places)
            rows = self.rows_at(place, np.arange(number * self.size, (number + 1) * self.size))
            yield RngKey(batch_index, np.arange(batch_index * self.size, (batch_index + 1) * self.size)), rows


def placed_rows(shards: MappedShards, counts: Sequence[int], places: int, seed: int) -> RowsAt:
    """Rows that are numbered by shard, of which shard n has `counts[n]`, in the order of the shards. There may be a
    count for rows that are in no shard after the others.
    """
    first, order = np.cumsum([0, *counts]), ShardOrder(counts, places, seed)

    def rows_at(place: int, positions: Int[np.ndarray, "P"]) -> Int[np.ndarray, "P"]:
        ordered = order.rows(place, positions)
        upcoming = order.upcoming(place, int(positions[0]))
        if upcoming < len(shards.shards):
            shards.announce(upcoming)
        return first[ordered.shards] + ordered.rows

    return rows_at


class PreparedExamples(IndexedExamples):
    """Samples of one table, which may be `prepared`: row n is the prepared sample `prepared_rows[n]`, or elsewhere
    (-1). If there are too many bytes for one shuffle, they are trained in the order of their shards, in `places`, the
    micro-batches of a step; those elsewhere are one more shard.
    """

    prepared: PreparedSamples | None = None
    prepared_rows: Int[np.ndarray, "N"]
    places: int = 1

    def set_prepared(
        self, parts: Sequence[UnlabelledPart], recipe: Recipe, samples: Int[np.ndarray, "N"] | None = None
    ) -> None:
        """Set the prepared samples of the first part. Row n is number `samples[n]` of all parts (None: number n)."""
        self.places, self.prepared = recipe.train.accumulate, parts[0].samples if parts else None
        self.prepared_rows = np.full(sum(len(part.rows) for part in parts), -1)
        if self.prepared is not None:
            self.prepared_rows[parts[0].rows] = np.arange(len(self.prepared))
        if samples is not None:
            self.prepared_rows = self.prepared_rows[samples]

    def in_few_shards(self, samples: Int[np.ndarray, "M"], count: int) -> Int[np.ndarray, "K"]:
        """These samples or, of prepared ones in many shards, the ones in as few shards as have `count` of them. Samples
        are in shards in random order.
        """
        if self.prepared is None or not self.prepared.is_windowed:
            return samples
        shards = self.prepared.shards_of(samples)
        return samples[shards <= np.sort(shards)[:count].max(initial=0)]

    def training_order(self, rows: Int[np.ndarray, "M"]) -> TrainingOrder:
        if self.prepared is None or not self.prepared.is_windowed:
            return super().training_order(rows)
        all_shards, samples = self.prepared.shards, self.prepared_rows[rows]
        elsewhere = len(all_shards.shards)
        shards = np.where(samples < 0, elsewhere, self.prepared.shards_of(samples))
        by_shard = np.argsort(shards, kind="stable")
        counts = np.bincount(shards, minlength=elsewhere).tolist()
        rows_at = placed_rows(all_shards, counts, self.places, self.seed)
        return PlacedBatches(
            lambda place, positions: by_shard[rows_at(place, positions)], len(rows), self.batch_size, self.places
        )


class PlacedLengthBatches:
    """Batches of samples with nearly equal lengths, planned within each shard: batch k is number k // places of place
    k % places, and a place mixes the batches of a window of shards.
    """

    def __init__(
        self,
        samples: PreparedSamples,
        rows: Int[np.ndarray, "N"],
        plan: Callable[[Int[np.ndarray, "M"]], PairBatches],
        places: int,
        seed: int,
    ) -> None:
        """`rows` are the samples of a split, which batches index, and `plan` returns the batches of some indices."""
        self._samples, self._places, self._count = samples, places, len(rows)
        self._members = samples.by_shard(rows)
        self._plan = lambda shard: plan(self._members[shard])
        # Only the numbers of batches are kept, so that memory is bounded by the window.
        self._sizes = [len(self._plan(shard)) if len(rows) else 0 for shard, rows in enumerate(self._members)]
        self._order = ShardOrder(self._sizes, places, seed)
        self._batches = lru_cache(self._order.window * places + 1)(lambda shard, epoch: self._plan(shard).epoch(epoch))

    @property
    def epoch(self) -> float:
        """The number of batches per epoch."""
        return sum(self._sizes)

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[RngKey, Int[np.ndarray, "B"]]]:
        for batch_index in shard.indices(start):
            number, place = divmod(batch_index, self._places)
            source, batch, epoch = (column.item() for column in self._order.rows(place, np.array([number])))
            self._samples.shards.announce(self._order.upcoming(place, number))
            indices = self._members[source][self._batches(source, epoch)[batch]]
            yield RngKey(batch_index, epoch * self._count + indices), indices
