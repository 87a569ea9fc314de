"""The order of training on shards: whole shards for each place of a step, and a shuffle over a window of a few."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from headway.data.shuffling import epoch_seed, permute

_MIN_WINDOW, _STEP_WINDOW = 2, 4  # shards per place, and at least in a step
_PLACES = 1 << 40  # distinguishes the seeds of places from those of epochs


class ShardRows(NamedTuple):
    """Rows of shards: the shard, the row in it, and the epoch, int64 [N] each."""

    shards: Int[np.ndarray, "N"]
    rows: Int[np.ndarray, "N"]
    epochs: Int[np.ndarray, "N"]


class ShardOrder:
    """Endless rows for each of `places`, the micro-batches of a step, as a pure function of (seed, place, position).

    An epoch's shards are in a random order. Each goes to the place that needs one first, so every row is trained on
    once per epoch and only one place reads a shard. A place reads in stages, one per shard: stage t mixes a random part
    of its shard t with the parts that are left for it of the `window` - 1 shards before, so that only `window` shards
    are open at once. Nothing but the numbers of rows is needed, so a resumed run computes its place without data.
    """

    def __init__(self, sizes: Sequence[int], places: int, seed: int) -> None:
        """`sizes` are the rows of each shard."""
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._filled = np.flatnonzero(self._sizes)  # shards that have rows
        self._seed = seed
        self.window = max(_MIN_WINDOW, _STEP_WINDOW // places)
        self._stages: list[list[tuple[int, int]]] = [[] for _ in range(places)]  # epoch and shard
        self._starts: list[list[int]] = [[0] for _ in range(places)]  # positions of the stages, and their end
        self._queue = [(0, place) for place in range(places)]  # places by the position at which they need a shard
        every, total = np.arange(len(self._filled)), len(self._filled)
        self._shards = (  # the epoch and number of each shard in the order in which they are dealt
            (epoch, shard)
            for epoch in count()
            for shard in self._filled[permute(every, total, epoch_seed(seed, epoch))].tolist()
        )

    def _slice(self, place: int, stage: int, part: int) -> tuple[int, int]:
        """The first row, and the number of rows, of the part of shard `stage` - `part` that belongs to a stage."""
        if part > stage:
            return 0, 0
        size = int(self._sizes[self._stages[place][stage - part][1]])
        first = part * size // self.window
        return first, (part + 1) * size // self.window - first

    def _deal(self, place: int, position: int) -> None:
        """Deal shards until the place's stages cover a position."""
        while self._starts[place][-1] <= position:
            start, receiver = heappop(self._queue)
            self._stages[receiver].append(next(self._shards))
            stage = len(self._stages[receiver]) - 1
            end = start + sum(self._slice(receiver, stage, part)[1] for part in range(self.window))
            self._starts[receiver].append(end)
            heappush(self._queue, (end, receiver))

    def rows(self, place: int, positions: Int[np.ndarray, "N"]) -> ShardRows:
        """The rows at ascending positions in the endless stream of a place."""
        self._deal(place, int(positions[-1]))
        starts = self._starts[place]
        earliest = bisect_right(starts, int(positions[0])) - 1
        latest = bisect_right(starts, int(positions[-1]))
        stages = earliest + np.searchsorted(starts[earliest:latest], positions, side="right") - 1
        shards, rows, epochs = (np.empty_like(positions) for _ in range(3))
        for stage in np.unique(stages).tolist():
            chosen = np.flatnonzero(stages == stage)
            size = starts[stage + 1] - starts[stage]
            seed = epoch_seed(epoch_seed(self._seed, _PLACES + place), stage)
            mixed = permute(positions[chosen] - starts[stage], size, seed)
            slices = [self._slice(place, stage, part) for part in range(self.window)]
            ends = np.cumsum([rows_of_part for _, rows_of_part in slices])
            parts = np.searchsorted(ends, mixed, side="right")
            for part in np.unique(parts).tolist():
                epoch, shard = self._stages[place][stage - part]
                inside = chosen[parts == part]
                first, size_of_part = slices[part]
                ordered = mixed[parts == part] - (int(ends[part]) - size_of_part) + first
                shards[inside], epochs[inside] = shard, epoch
                rows[inside] = permute(
                    ordered, int(self._sizes[shard]), epoch_seed(epoch_seed(self._seed, epoch), shard)
                )
        return ShardRows(shards, rows, epochs)

    def upcoming(self, place: int, position: int) -> int:
        """The shard that the place needs in the stage after that of a position, to fetch it ahead."""
        self._deal(place, position)
        stage = bisect_right(self._starts[place], position)
        self._deal(place, self._starts[place][stage])
        return self._stages[place][stage][1]
