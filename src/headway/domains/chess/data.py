"""Shared by all chess tasks: positions split by game, and example predictions for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from torch import nn

from headway.codecs.chess_boards import to_fens
from headway.data import Splits
from headway.data.array_store import column_digest
from headway.domains.chess.boards import board_from_fen, chess, decode_move, drawing
from headway.domains.chess.evaluator import BoardEvaluator, PositionEvaluator, position_input
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.domains.chess.positions import Positions
from headway.domains.chess.puct import expected_of
from headway.learn import Recipe
from headway.learn.examples import Contents, IndexedExamples
from headway.learn.objective import Objective
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture
from headway.nn.models import attention_maps

_SIZE = 330  # maximum width of a board in pixels
_GREEN, _BLUE = "#15781b", "#1565c0"
_ARROWS = 3  # moves drawn per board
_MAPS = 2  # attention heads drawn


def boards_of(source: Positions, rows: np.ndarray) -> list[chess.Board]:
    """Return the boards of positions, int [N]."""
    return [board_from_fen(fen) for fen in to_fens(np.asarray(source.positions[rows]))]


def best_moves(evaluator: PositionEvaluator, board: chess.Board, max_moves: int) -> list[tuple[chess.Move, float]]:
    """Return a position's most probable moves with their probabilities or, without a policy, the best by the value
    after each.
    """
    if evaluator.has_policy:
        inputs = position_input(board, evaluator.history)
        policy = evaluator.evaluate([inputs])[0].policy
        assert policy is not None  # because has_policy is set
        best = np.argsort(-policy, kind="stable")[:max_moves].tolist()
        return [(decode_move(inputs.moves[index], board.turn), float(policy[index])) for index in best]
    lines = ChessPlayer(evaluator, "value").think(board, SearchLimits()).lines[:max_moves]
    return [(line.moves[0], expected_of(line.outcome)) for line in lines]


def sample_positions(evaluator: PositionEvaluator, source: Positions, rows: np.ndarray) -> list[dict[str, str]]:
    """Return positions with the predicted and the correct move, in standard notation."""
    samples: list[dict[str, Any]] = []
    targets = source.targets(rows)
    for board, moves in zip(boards_of(source, rows), targets.moves):
        if not any(board.generate_legal_moves()):
            continue
        predicted = best_moves(evaluator, board, 1)[0][0]
        correct = board.san(decode_move(int(moves[0]), board.turn)) if moves[0] >= 0 else ""
        samples.append({"source": board.fen(), "output": board.san(predicted), "reference": correct})
    return samples


def board_pictures(evaluator: PositionEvaluator, source: Positions, rows: np.ndarray) -> list[Picture]:
    """Return a board per position with the evaluator's best moves. For the first position, also the attention of the
    move's square if the model reads squares.
    """
    pictures: list[Picture] = []
    for number, board in enumerate(boards_of(source, rows)):
        if not any(board.generate_legal_moves()):
            continue
        moves = best_moves(evaluator, board, _ARROWS)
        move_list = ", ".join(f"{board.san(move)} {100 * share:.0f} %" for move, share in moves)
        caption = f"{'White' if board.turn else 'Black'} to move: {move_list}"
        outcome = evaluator.evaluate([position_input(board, evaluator.history)])[0].outcome
        if outcome is not None:
            caption += "; wins {:.0f}, draws {:.0f}, loses {:.0f} %".format(*(100 * outcome))
        pictures.append(Picture(f"Position {number + 1}", caption, board_svg(board, moves)))
        if number == 0 and isinstance(evaluator, BoardEvaluator):
            pictures += _attention_pictures(evaluator, board, moves[0][0])
    return pictures


def board_svg(
    board: chess.Board, moves: Sequence[tuple[chess.Move, float]] = (), weights: Mapping[int, float] | None = None
) -> str:
    """Draw a board from White's side. Moves are arrows, bolder if more probable, and squares are shaded by weights from
    0 to 1.
    """
    arrows = [
        drawing.Arrow(move.from_square, move.to_square, color=_shade(_GREEN, share)) for move, share in reversed(moves)
    ]
    fill = {square: _shade(_BLUE, weight) for square, weight in (weights or {}).items() if weight > 0.01}
    svg = drawing.board(board, arrows=arrows, fill=fill)
    label = f"chess position {board.fen()}"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" style="max-width:{_SIZE}px" ', 1)


def _shade(color: str, weight: float) -> str:
    """Return a colour #rrggbb with an opacity for a weight from 0 to 1."""
    return f"{color}{round(255 * (0.15 + 0.7 * min(1.0, weight))):02x}"


def _attention_pictures(evaluator: BoardEvaluator, board: chess.Board, move: chess.Move) -> list[Picture]:
    """Draw the attention of the move's square in heads of the last attention layer."""
    inputs = evaluator.inputs([position_input(board, evaluator.history)])
    maps = attention_maps(evaluator.model, lambda: evaluator.model(inputs))
    if not maps:
        return []
    name, weights = list(maps.items())[-1]
    flip = 0 if board.turn else 56
    rows = weights[0, :_MAPS, move.from_square ^ flip]
    pictures = []
    for head, row in enumerate(rows, 1):
        share = (row / row.max().clamp(min=1e-9)).tolist()
        caption = f"{name}: attention of {chess.square_name(move.from_square)}, relative to its maximum"
        shaded = {square ^ flip: weight for square, weight in enumerate(share)}
        pictures.append(Picture(f"Attention, head {head}", caption, board_svg(board, weights=shaded)))
    return pictures


class PositionRows(IndexedExamples):
    """Positions by index. They do not need a codec."""

    eval_batch_size = 256

    def __init__(self, recipe: Recipe, source: Positions, splits: Splits) -> None:
        self.batch_size, self.seed, self.source, self.splits = batch_size_of(recipe), recipe.train.seed, source, splits

    def contents(self) -> Contents:
        parts = {"positions": ("positions", "earlier"), "moves": ("counts", "moves"), "values": ("values", "worths")}
        return {name: ([column_digest(self.source.folder, *columns)],) for name, columns in parts.items()}


P = TypeVar("P", bound=PositionRows)


class PositionObjective(Objective[P], Generic[P]):
    """The objective for models that evaluate positions."""

    unit = "position"

    def evaluator(self, model: nn.Module) -> PositionEvaluator:
        """Return the model as an evaluator of positions."""
        raise NotImplementedError

    def samples(self, model: nn.Module, examples: P, count: int) -> list[dict[str, str]]:
        """Return held-out positions with the predicted and the correct move."""
        return sample_positions(self.evaluator(model), examples.source, examples.spread_rows(count))

    def pictures(self, model: nn.Module, examples: P) -> list[Picture]:
        """Draw boards with the model's best moves and, if it reads squares, its attention."""
        return board_pictures(self.evaluator(model), examples.source, examples.spread_rows(4))
