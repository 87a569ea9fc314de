"""Training batches in the order of shards: whole shards for each micro-batch of a step, and a shuffle over a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_order import ShardOrder
from headway.learn.examples import RngKey, Shard

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


def windowed_batches(
    samples: PreparedSamples, rows: Int[np.ndarray, "N"], size: int, places: int, seed: int
) -> PlacedBatches:
    """Batches of indices into `rows`, samples of a split, in the order of their shards."""
    shards = samples.shards_of(rows)
    by_shard = np.argsort(shards, kind="stable")
    counts = np.bincount(shards, minlength=len(samples.shards.shards))
    first, order = np.cumsum([0, *counts.tolist()]), ShardOrder(counts.tolist(), places, seed)

    def rows_at(place: int, positions: Int[np.ndarray, "M"]) -> Int[np.ndarray, "M"]:
        ordered = order.rows(place, positions)
        samples.shards.announce(order.upcoming(place, int(positions[0])))
        return by_shard[first[ordered.shards] + ordered.rows]

    return PlacedBatches(rows_at, len(rows), size, places)
