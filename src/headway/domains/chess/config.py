"""Configurations of the chess tasks. The package chess is only needed when a task is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headway.codecs.chess_boards import MOVES
from headway.config_kinds import register
from headway.data.splits import SplitConfig
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Task, TaskConfig
from headway.nn.models.kinds import is_board

if TYPE_CHECKING:
    from headway.domains.chess.evaluator import PositionEvaluator
    from headway.domains.chess.positions import Positions
    from headway.nn.models import Transformer


@dataclass(frozen=True)
class GamesConfig(TaskConfig):
    """`evals` is the weight of engine evaluations in a game's comments relative to the game's result; `skip_bad` skips
    games with illegal moves or without a result; `split` sets the held-out games.
    """

    evals: float = 0.5  # share of the value target that is an engine's evaluation; the rest is the result
    skip_bad: bool = False  # skip games with illegal moves or without a result
    split: SplitConfig = SplitConfig(validation=0.02, test=0.02)  # held-out games

    def __post_init__(self) -> None:
        if not 0 <= self.evals <= 1:
            raise ConfigError(f"task.evals is {self.evals}; choose a number from 0 to 1")

    def positions(self, data: Sequence[Path] | None) -> Positions:
        """Read the user's files. UserError without the extra `chess` and for unusable data."""
        from headway.domains.chess.positions import open_positions

        if not data:
            raise UserError("chess has no built-in data; pass games or labelled positions with --data")
        return open_positions(data, self.evals, self.skip_bad)


Target = Literal["behaviour", "state_value", "action_value"]


@register("chess")
@dataclass(frozen=True)
class ChessConfig(GamesConfig):
    """Predict moves and outcomes from 64 squares, with the heads "policy" and "value".

    If several moves have evaluations, the policy target is a softmax of the moves' worths over `temperature`; otherwise
    it is the move played. `value_weight` scales the outcome's cross-entropy relative to the policy's. In training, a
    share `forget` of the positions has its history removed, because puzzles and labels have no history, and a share
    `turn` of the positions without castling rights is mirrored left to right.
    """

    temperature: float = 0.03  # temperature of the softmax over the moves' worths
    value_weight: float = 1.0  # weight of the outcome's loss relative to the policy's
    forget: float = 0.5  # share of positions whose history is removed
    turn: float = 0.5  # share of positions without castling rights that are mirrored

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"task.temperature is {self.temperature}; choose a number above 0, such as 0.03")
        if self.value_weight < 0:
            raise ConfigError(f"task.value_weight is {self.value_weight}; choose 0 or more")
        for name in ("forget", "turn"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose a number from 0 to 1")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        source = self.positions(data)
        from headway.domains.chess.task import Boards, MovesAndOutcomes

        boards = Boards(recipe, source, self.split, self.temperature, self.forget, self.turn)
        return Task(boards, MovesAndOutcomes(self.value_weight))


@register("searchless")
@dataclass(frozen=True)
class SearchlessConfig(GamesConfig):
    """One head over the tokens of a FEN (Ruoss et al. 2024, section 2). It predicts the move played (`behaviour`), or
    the expected score of the position (`state_value`) or of a move in it (`action_value`) as one of `bins` equal bins.
    """

    target: Target = "action_value"  # prediction target: the move, the position's value, or a move's value
    bins: int = 128  # number of bins for the expected score

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise ConfigError(f"task.bins is {self.bins}; choose 2 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        source = self.positions(data)
        from headway.domains.chess.task import Fens, MoveOrBin

        outputs = len(MOVES) if self.target == "behaviour" else self.bins
        return Task(Fens(recipe, source, self.split, self.target, self.bins), MoveOrBin(self.target, outputs))


def make_evaluator(model: Transformer, recipe: Recipe | None, source: str) -> PositionEvaluator:
    """Return the evaluator for a model. For a model that reads tokens, the recipe defines the target. UserError for a
    model that was not trained on chess.
    """
    from headway.domains.chess.evaluator import BoardEvaluator, TokenEvaluator

    if recipe is not None and isinstance(recipe.task, SearchlessConfig):
        return TokenEvaluator(model, recipe.task.target)
    if is_board(model):
        return BoardEvaluator(model)
    raise UserError(f"{source} does not play chess; train one: headway train chess --data games.pgn")
