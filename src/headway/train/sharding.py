"""The order in which processes read samples: batch k is the same for any number of them, and each reads its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from headway.data import PairBatches, sample_at


class Shard(NamedTuple):
    """The part of the data that one of `world` processes reads."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()


def endless(
    samples: int, size: int, seed: int, shard: Shard, start: int
) -> Iterator[tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]]:
    """Places of a shuffled stream of epochs, without end, and which of the `samples` stand there: batch k holds the
    places k size, ..., (k + 1) size - 1.
    """
    for number in count(start + shard.rank, shard.world):
        places = np.arange(number * size, (number + 1) * size)
        yield places, sample_at(places, samples, seed)


def once(samples: int, size: int, shard: Shard) -> Iterator[Int[np.ndarray, "B"]]:
    """All samples in order, in batches of at most `size`."""
    for first in range(shard.rank * size, samples, shard.world * size):
        yield np.arange(first, min(first + size, samples))


def spread(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` of some rows, spread evenly over them: the first ones are often of one class or one file."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def planned(plan: PairBatches, shard: Shard, start: int) -> Iterator[Int[np.ndarray, "B"]]:
    """The plan's batches without end: batch k is the k-th of a row of shuffled epochs."""
    batches: Sequence[np.ndarray] = ()
    known = -1
    for number in count(start + shard.rank, shard.world):
        epoch, place = divmod(number, len(plan))
        if epoch != known:
            batches, known = plan.epoch(epoch), epoch
        yield batches[place]
