"""What all tasks of chess share: positions split by game, in the order in which they are learnt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from headway.data.splits import SplitConfig, larger_share
from headway.domains.chess.positions import Positions
from headway.errors import UserError
from headway.train import WHOLE, Recipe, Shard, Sided, sharding
from headway.train.recipe import batch_size_of


class PositionRows(Sided):
    """The numbers of positions, by split and in batches."""

    unit = "position"
    goal: str = "loss"
    goal_better: Literal["min", "max"] = "min"
    at_once = 256  # positions that are judged together

    def __init__(self, recipe: Recipe, source: Positions, split: SplitConfig) -> None:
        self.size, self.seed, self.source = batch_size_of(recipe), recipe.train.seed, source
        self.sides = source.split(split)

    def numbers(self, split: str) -> np.ndarray:
        """The positions of a split, int64 [N]; "all" is all there are. A UserError where there are none."""
        found = np.arange(len(self.source)) if split == "all" else self.sides[split]
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.source):,} positions is empty; give more games, or "
                f"{larger_share(split)}"
            )
        return found

    def endless(self, split: str, shard: Shard, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places in the shuffled stream of epochs, and the positions there."""
        rows = self.numbers(split)
        for places, samples in sharding.endless(len(rows), self.size, self.seed, shard, start):
            yield places, rows[samples]

    def once(self, split: str, shard: Shard = WHOLE, limit: int | None = None) -> Iterator[np.ndarray]:
        """The positions of a split in order, or spread evenly over it where they are limited."""
        rows = sharding.spread(self.numbers(split), limit)
        for some in sharding.once(len(rows), self.at_once, shard):
            yield rows[some]

    def spread(self, count: int) -> np.ndarray:
        """Positions of the split that is judged last, spread evenly over it."""
        return sharding.spread(self.numbers(self.final_split), count)
