"""The tasks of chess as data. Nothing here needs the package chess until a task is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headway.codecs.boards import MOVES
from headway.config import register
from headway.data.splits import SplitConfig
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Task, TaskConfig

if TYPE_CHECKING:
    from headway.domains.chess.positions import Positions

Target = Literal["behaviour", "state_value", "action_value"]


@dataclass(frozen=True)
class GamesConfig(TaskConfig):
    """`evals` is the weight of an engine's judgement in a game's comments beside the result of the game; `skip_bad`
    passes over games with impossible moves or without an end; `split` says what is held out, game by game.
    """

    evals: float = 0.5  # weight of an engine's judgement beside the result of the game
    skip_bad: bool = False  # pass over games with impossible moves or without an end
    split: SplitConfig = SplitConfig(validation=0.02, test=0.02)  # what is held out, game by game

    def __post_init__(self) -> None:
        if not 0 <= self.evals <= 1:
            raise ConfigError(f"task.evals is {self.evals}; give a share from 0 to 1")

    def positions(self, data: Sequence[Path] | None) -> Positions:
        """Read the user's files. UserError without the extra `chess` and for data that cannot be learnt from."""
        from headway.domains.chess.positions import open_positions

        if not data:
            raise UserError("chess has no data of its own; give games or labelled positions with --data")
        return open_positions(data, self.evals, self.skip_bad)


@register("chess")
@dataclass(frozen=True)
class ChessConfig(GamesConfig):
    """Moves and outcomes on 64 squares, with the heads "policy" and "value".

    Where several moves have evaluations, the policy is a softmax of their worths over `temperature`; else it
    is the move played. `value_weight` is that of the outcome's cross-entropy beside the policy's. In training
    `forget` of the positions are shown without those before them, as positions of puzzles and labels have none, and
    `turn` of those in which no one may castle with left and right exchanged.
    """

    temperature: float = 0.03  # of the softmax of the moves' worths
    value_weight: float = 1.0  # of the outcome's loss beside the policy's
    forget: float = 0.5  # share of positions shown without those before them
    turn: float = 0.5  # share of positions without castling shown in the mirror

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"task.temperature is {self.temperature}; give a number above 0, such as 0.03")
        if self.value_weight < 0:
            raise ConfigError(f"task.value_weight is {self.value_weight}; give 0 or more")
        for name in ("forget", "turn"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; give a share from 0 to 1")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        source = self.positions(data)
        from headway.domains.chess.task import Boards, MovesAndOutcomes

        return Task(Boards(self, recipe, source), MovesAndOutcomes(self.value_weight))


@register("searchless")
@dataclass(frozen=True)
class SearchlessConfig(GamesConfig):
    """One head over the tokens of a FEN (Ruoss et al. 2024, section 2): which move is made (`behaviour`), or the bin of
    the expected score of the position (`state_value`) or of a move in it (`action_value`), of `bins` equal ones.
    """

    target: Target = "action_value"  # what is said: the move, the worth of the position, or that of a move
    bins: int = 128  # of the expected score

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise ConfigError(f"task.bins is {self.bins}; give 2 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        source = self.positions(data)
        from headway.domains.chess.searchless import Fens, MoveOrBin

        outputs = len(MOVES) if self.target == "behaviour" else self.bins
        return Task(Fens(self, recipe, source), MoveOrBin(self.target, outputs))
