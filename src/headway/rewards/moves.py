"""Rewards for chess: a legal move, a move that mates. Positions are FEN, in the row's `fen` or as the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from headway.errors import UserError


def legal_move(prompt: str, output: str, row: Mapping[str, Any]) -> float:
    """1 if the output starts with a legal move, as e2e4, e2 e4 or Nf3."""
    return float(board_after(output, row) is not None)


def checkmate(prompt: str, output: str, row: Mapping[str, Any]) -> float:
    """1 if the output starts with a move that gives checkmate."""
    board = board_after(output, row)
    return float(board is not None and board.is_checkmate())


def check_position(row: Mapping[str, Any]) -> None:
    """Raise ValueError for a row without a position, and UserError without the package chess."""
    position(row)


def position(row: Mapping[str, Any]) -> Any:
    """The row's position as a board of python-chess."""
    try:
        chess = import_module("chess")
    except ImportError:
        raise UserError("chess needs the package chess (GPL-3.0+); run pip install 'headway[chess]'") from None
    fen = row.get("fen", row["prompt"])
    try:
        return chess.Board(fen.strip())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"has {fen!r:.100}, which is not a position ({error}); add a FEN as 'fen'") from error


def board_after(output: str, row: Mapping[str, Any]) -> Any:
    """The board after the move that the output starts with; None if that is not a legal move."""
    board, words = position(row), output.split()
    for parse, text in (
        (board.parse_uci, "".join(words[:1])),
        (board.parse_san, "".join(words[:1])),
        (board.parse_uci, "".join(words[:2])),
    ):
        try:
            move = parse(text)
        except ValueError:
            continue
        if move:  # 0000 is no move
            board.push(move)
            return board
    return None
