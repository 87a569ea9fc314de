"""What all ways to learn chess share: positions in splits by game, and what people are shown of what was learned."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import nn

from headway.data import Splits
from headway.domains.chess.judge import Judge
from headway.domains.chess.positions import Positions
from headway.domains.chess.show import board_pictures, shown_positions
from headway.learn import Recipe
from headway.learn.examples import Numbered
from headway.learn.objective import Objective
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture


class PositionRows(Numbered):
    """Positions by number. There is no codec to keep: they are what they are."""

    at_once = 256

    def __init__(self, recipe: Recipe, source: Positions, splits: Splits) -> None:
        self.size, self.seed, self.source, self.splits = batch_size_of(recipe), recipe.train.seed, source, splits


P = TypeVar("P", bound=PositionRows)


class PositionObjective(Objective[P], Generic[P]):
    """What is learned of positions by a model that has opinions of them."""

    unit = "position"

    def opinions(self, model: nn.Module) -> Judge:
        """The model as a judge of positions."""
        raise NotImplementedError

    def samples(self, model: nn.Module, examples: P, count: int) -> list[dict[str, str]]:
        """Held-out positions with the move that is said and the one that is right."""
        return shown_positions(self.opinions(model), examples.source, examples.spread(count))

    def pictures(self, model: nn.Module, examples: P) -> list[Picture]:
        """Boards with the moves that the model likes best and, of one that reads squares, where these look."""
        return board_pictures(self.opinions(model), examples.source, examples.spread(4))
