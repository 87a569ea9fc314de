"""Boards as pictures: what a model thinks of playing, and where its squares look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headway.domains.chess.judge import BoardJudge, Judge, place_of
from headway.domains.chess.positions import Positions
from headway.domains.chess.rules import chess
from headway.domains.chess.show import boards_of, thought_of
from headway.models import attention_maps
from headway.report import Picture

_CELL = 30
_GLYPHS = "♟♞♝♜♛♚"
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
    size, marks = 8 * _CELL + 16, []
    for square in range(64):
        x, y = _corner(square)
        dark = (square // 8 + square % 8) % 2 == 0
        place = f'x="{x}" y="{y}" width="{_CELL}" height="{_CELL}"'
        marks.append(f'<rect {place} fill="{"#b58863" if dark else "#f0d9b5"}"/>')
        if weights and weights.get(square, 0.0) > 0.01:
            tip = f"<title>{chess.square_name(square)}: {weights[square]:.2f}</title>"
            marks.append(f'<rect {place} fill="#1565c0" fill-opacity="{min(0.85, weights[square]):.3f}">{tip}</rect>')
    marks += [_piece(square, piece) for square, piece in board.piece_map().items()]
    marks += [_arrow(move, share) for move, share in reversed(moves)]
    for n in range(8):
        x = 16 + _CELL * n + _CELL // 2
        marks.append(f'<text class="tick" x="{x}" y="{size - 3}" text-anchor="middle">{"abcdefgh"[n]}</text>')
        marks.append(f'<text class="tick" x="2" y="{_CELL * (7 - n) + 20}">{n + 1}</text>')
    label = f"chess position {board.fen()}"
    style = f'style="max-width:{size}px"'
    return f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{label}" {style}>{"".join(marks)}</svg>'


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


def _corner(square: int) -> tuple[int, int]:
    return 16 + _CELL * (square % 8), _CELL * (7 - square // 8)


def _middle(square: int) -> tuple[float, float]:
    x, y = _corner(square)
    return x + _CELL / 2, y + _CELL / 2


def _piece(square: int, piece: chess.Piece) -> str:
    x, y = _middle(square)
    fill, line = ("#fff", "#000") if piece.color else ("#000", "#ddd")
    style = f'font-size="{_CELL - 4}" fill="{fill}" stroke="{line}" stroke-width="0.7" text-anchor="middle"'
    return f'<text x="{x}" y="{y + 9}" {style}>{_GLYPHS[piece.piece_type - 1]}\ufe0e</text>'


def _arrow(move: chess.Move, share: float) -> str:
    (x, y), (to_x, to_y) = _middle(move.from_square), _middle(move.to_square)
    style = f'stroke="#15781b" stroke-opacity="{0.25 + 0.7 * share:.2f}" stroke-width="{2 + 5 * share:.1f}"'
    head = f'r="{3 + 4 * share:.1f}" fill="#15781b" fill-opacity="{0.3 + 0.7 * share:.2f}"'
    return (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" {style}><title>{move.uci()}: {share:.2f}</title></line>'
        f'<circle cx="{to_x}" cy="{to_y}" {head}/>'
    )
