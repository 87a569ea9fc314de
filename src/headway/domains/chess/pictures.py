"""Boards as pictures: what a model thinks of playing, and where its squares look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headway.domains.chess.judge import BoardJudge, Judge, place_of
from headway.domains.chess.positions import Positions
from headway.domains.chess.rules import chess, drawing
from headway.domains.chess.show import boards_of, thought_of
from headway.models import attention_maps
from headway.report import Picture

_SIZE = 330  # of a board, in pixels at most
_GREEN, _BLUE = "#15781b", "#1565c0"
_ARROWS = 3  # moves that are drawn
_MAPS = 2  # heads whose attention is drawn


def board_pictures(judge: Judge, source: Positions, rows: np.ndarray) -> list[Picture]:
    """For each position a board with the moves that the judge likes best and, for the first, where the square of the
    move looks, where squares are what a model reads.
    """
    found: list[Picture] = []
    for number, board in enumerate(boards_of(source, rows)):
        if not any(board.generate_legal_moves()):
            continue
        moves = thought_of(judge, board, _ARROWS)
        told = ", ".join(f"{board.san(move)} {100 * share:.0f} %" for move, share in moves)
        caption = f"{'White' if board.turn else 'Black'} to move: {told}"
        outcome = judge.judge([place_of(board, judge.history)])[0].outcome
        if outcome is not None:
            caption += "; wins {:.0f}, draws {:.0f}, loses {:.0f} %".format(*(100 * outcome))
        found.append(Picture(f"Position {number + 1}", caption, board_svg(board, moves)))
        if number == 0 and isinstance(judge, BoardJudge):
            found += _attention(judge, board, moves[0][0])
    return found


def board_svg(
    board: chess.Board, moves: Sequence[tuple[chess.Move, float]] = (), weights: Mapping[int, float] | None = None
) -> str:
    """A board seen from White, with moves as arrows, the more probable the bolder, and squares marked by weights from 0
    to 1.
    """
    arrows = [
        drawing.Arrow(move.from_square, move.to_square, color=_shade(_GREEN, share)) for move, share in reversed(moves)
    ]
    fill = {square: _shade(_BLUE, weight) for square, weight in (weights or {}).items() if weight > 0.01}
    shown = drawing.board(board, arrows=arrows, fill=fill)
    label = f"chess position {board.fen()}"
    return shown.replace("<svg ", f'<svg role="img" aria-label="{label}" style="max-width:{_SIZE}px" ', 1)


def _shade(color: str, weight: float) -> str:
    """A color of #rrggbb that covers by a weight from 0 to 1."""
    return f"{color}{round(255 * (0.15 + 0.7 * min(1.0, weight))):02x}"


def _attention(judge: BoardJudge, board: chess.Board, move: chess.Move) -> list[Picture]:
    """Where the square that the move starts from looks, in heads of the last layer that has attention."""
    inputs = judge.inputs([place_of(board, judge.history)])
    maps = attention_maps(judge.model, lambda: judge.model(inputs))
    if not maps:
        return []
    name, weights = list(maps.items())[-1]
    turned = 0 if board.turn else 56
    rows = weights[0, :_MAPS, move.from_square ^ turned]
    found = []
    for head, row in enumerate(rows, 1):
        share = (row / row.max().clamp(min=1e-9)).tolist()
        caption = f"of {name}: where {chess.square_name(move.from_square)} looks, as parts of the most"
        shown = {square ^ turned: weight for square, weight in enumerate(share)}
        found.append(Picture(f"Attention, head {head}", caption, board_svg(board, weights=shown)))
    return found
