"""Positions for people: as text beside the moves of a model, and as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.codecs.fen import fens
from headway.codecs.moves import MOVERS
from headway.domains.chess.judge import Judge, place_of
from headway.domains.chess.limits import Limits
from headway.domains.chess.nodes import expected_of
from headway.domains.chess.player import Player
from headway.domains.chess.positions import Positions
from headway.domains.chess.rules import board_of, chess, legal_numbers, move_of


def boards_of(source: Positions, rows: np.ndarray) -> list[chess.Board]:
    """The boards of positions, int [N], with the moves that led there as far as the model may look back."""
    return [board_of(fen) for fen in fens(np.asarray(source.positions[rows]))]


def legal_moves(source: Positions, rows: np.ndarray) -> np.ndarray:
    """The legal moves of positions, bool [N, M], from the side of who is to move."""
    found = np.zeros((len(rows), MOVERS), bool)
    for row, fen in enumerate(fens(np.asarray(source.positions[rows]))):
        found[row, legal_numbers(chess.Board(fen))] = True
    return found


def thought_of(judge: Judge, board: chess.Board, most: int) -> list[tuple[chess.Move, float]]:
    """The most probable moves of a position, with their probabilities; by the value after each where there are none."""
    if judge.has_policy:
        place = place_of(board, judge.history)
        policy = judge.judge([place])[0].policy
        assert policy is not None  # as the judge says
        best = np.argsort(-policy, kind="stable")[:most].tolist()
        return [(move_of(place.moves[at], board.turn), float(policy[at])) for at in best]
    lines = Player(judge, "value").think(board, Limits()).lines[:most]
    return [(line.moves[0], expected_of(line.outcome)) for line in lines]


def shown_positions(judge: Judge, source: Positions, rows: np.ndarray) -> list[dict[str, str]]:
    """The position, the move that the model makes and the one that is right, as people write them."""
    found: list[dict[str, Any]] = []
    targets = source.targets(rows)
    for board, moves in zip(boards_of(source, rows), targets.moves):
        if not any(board.generate_legal_moves()):
            continue
        said = thought_of(judge, board, 1)[0][0]
        right = board.san(move_of(int(moves[0]), board.turn)) if moves[0] >= 0 else ""
        found.append({"source": board.fen(), "output": board.san(said), "reference": right})
    return found
