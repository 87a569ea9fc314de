"""The order in which processes read samples: batch k is the same for any number of them, and each reads its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Shard(NamedTuple):
    """The part of the data that one of `world` processes reads."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()


def spread(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` of some rows, spread evenly over them: the first ones are often of one class or one file."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
