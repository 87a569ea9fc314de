"""A model that plays: by its policy only, by the value of the position after each move, or by tree search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headway.domains.chess.boards import chess, decode_move
from headway.domains.chess.evaluator import PositionEvaluator, PositionInput, position_input, repetitions
from headway.domains.chess.limits import SEARCHES, SearchLimits
from headway.domains.chess.puct import PuctConfig, SearchLine, Tree, expected_of
from headway.errors import UserError


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: lines, best first, and the number of evaluated positions."""

    lines: list[SearchLine]
    nodes: int

    @property
    def move(self) -> chess.Move:
        return self.lines[0].moves[0]


Report = Callable[[list[SearchLine], int], None]


class ChessPlayer:
    """Chooses moves with an evaluator and its cache. If `search` is None, uses the strongest search that the evaluator
    supports.

    Raises UserError for a search that needs an output that the model lacks.
    """

    def __init__(
        self, evaluator: PositionEvaluator, search: str | None = None, config: PuctConfig | None = None
    ) -> None:
        self.tree = Tree(evaluator, config or PuctConfig())
        self.evaluator = self.tree.evaluator
        self.set_search(search)

    def set_search(self, search: str | None) -> None:
        """Choose moves by this search from now on, and keep the tree. Raises UserError as the constructor does."""
        evaluator = self.evaluator
        chosen = search or ("puct" if evaluator.has_value else "policy")
        if chosen not in SEARCHES:
            raise UserError(f"there is no search {chosen!r}; use {', '.join(SEARCHES)}")
        if chosen != "policy" and not evaluator.has_value:
            raise UserError(
                f"this model does not predict values, which the search {chosen} needs; use the search policy"
            )
        if chosen == "policy" and not evaluator.has_policy:
            raise UserError("this model predicts only values; use the search value or puct")
        self.search = chosen

    def warm_up(self) -> None:
        """Run a model's slow first evaluation before any clock starts, and time a second one."""
        for _ in range(2):
            self.evaluator.evaluate_uncached([position_input(chess.Board(), self.evaluator.history)])

    def use_threads(self, threads: int) -> None:
        """Set the number of CPU threads."""
        torch.set_num_threads(threads)

    def new_game(self) -> None:
        """Forget the tree of the last game."""
        self.tree.clear()

    def think(
        self, board: chess.Board, limits: SearchLimits, report: Report | None = None, only: Sequence[chess.Move] = ()
    ) -> SearchResult:
        """Return the best moves of a board. UserError if it has no legal move."""
        if not any(board.generate_legal_moves()):
            raise UserError(f"there is no legal move in {board.fen()!r}; the game is over")
        if self.search == "puct":
            return SearchResult(*self.tree.search(board, limits, report, only))
        candidates = list(only) or list(board.legal_moves)
        if self.search == "policy":
            return SearchResult([line for line in self.by_policy(board) if line.moves[0] in candidates], 1)
        return SearchResult(self._by_value(board, candidates), len(candidates))

    def by_policy(self, board: chess.Board) -> list[SearchLine]:
        """Return all moves, most probable first; `visits` are their probabilities in millionths. Moves that draw at
        once by the rules come last unless a draw is the best hope, because a policy is unaware of repetitions.
        """
        inputs = position_input(board, self.evaluator.history)
        evaluation = self.evaluator.evaluate([inputs])[0]
        assert evaluation.policy is not None  # checked at the start
        outcome = np.array([0.0, 1.0, 0.0]) if evaluation.outcome is None else evaluation.outcome
        order = np.argsort(-evaluation.policy, kind="stable").tolist()
        lines = [
            SearchLine(
                [decode_move(inputs.moves[index], board.turn)], round(1e6 * float(evaluation.policy[index])), outcome
            )
            for index in order
        ]
        if evaluation.outcome is not None and expected_of(outcome) < 0.5:
            return lines
        return sorted(lines, key=lambda line: _is_drawing_move(board, line.moves[0]))

    def _by_value(self, board: chess.Board, moves: Sequence[chess.Move]) -> list[SearchLine]:
        """Return the moves ordered by the evaluation of the position after each; finished games are scored by the
        rules.
        """
        lines: list[SearchLine] = []
        waiting: list[tuple[SearchLine, PositionInput]] = []
        after = board.copy()
        for move in moves:
            after.push(move)
            line = SearchLine([move], 1, np.array([0.0, 1.0, 0.0]))
            if after.is_checkmate():
                line.outcome, line.mates = np.array([1.0, 0.0, 0.0]), True
            elif not _is_drawn(after):
                waiting.append((line, position_input(after, self.evaluator.history)))
            lines.append(line)
            after.pop()
        for (line, _), evaluation in zip(
            waiting, self.evaluator.evaluate([entry for _, entry in waiting]) if waiting else []
        ):
            assert evaluation.outcome is not None  # checked at the start
            line.outcome = evaluation.outcome[::-1]
        return sorted(lines, key=lambda line: -expected_of(line.outcome))


def _is_drawing_move(board: chess.Board, move: chess.Move) -> bool:
    after = board.copy()
    after.push(move)
    return not after.is_checkmate() and _is_drawn(after)


def _is_drawn(board: chess.Board) -> bool:
    """Whether the game is drawn by any rule."""
    over = board.is_stalemate() or board.is_insufficient_material() or board.halfmove_clock >= 100
    return over or repetitions(board) >= 2
