"""Forced mates, found by the rules alone: every move of the one side against every defence."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.rules import chess


def forced_mate(
    board: chess.Board, moves: int, limits: SearchLimits, only: Sequence[chess.Move] = ()
) -> list[chess.Move] | None:
    """The shortest mate in at most so many moves of who is to move, with the longest defence; None where there is none,
    or none was found before the limits were over. `only` leaves the first move no others.
    """
    for length in range(1, moves + 1):
        found = _mating(board.copy(), length, limits, list(only))
        if found is not None or limits.over:
            return found
    return None


def _mating(board: chess.Board, moves: int, limits: SearchLimits, only: list[chess.Move]) -> list[chess.Move] | None:
    """A mate in exactly or at most so many moves: those to a check first, and at the last they alone."""
    every = only or list(board.generate_legal_moves())
    checks = [move for move in every if board.gives_check(move)]
    quiet = [] if moves == 1 else [move for move in every if move not in checks]
    for move in checks + quiet:
        if limits.over:
            return None
        board.push(move)
        follows = _defended(board, moves - 1, limits)
        board.pop()
        if follows is not None:
            return [move, *follows]
    return None


def _defended(board: chess.Board, moves: int, limits: SearchLimits) -> list[chess.Move] | None:
    """What follows after the move of who mates, once so many of theirs are left: nothing where it is mate already; None
    where there is a way out.
    """
    longest: list[chess.Move] = []
    if board.is_insufficient_material() or (board.halfmove_clock >= 100 and not board.is_checkmate()):
        return None
    defences = list(board.generate_legal_moves())
    if not defences or moves == 0:
        return [] if not defences and board.is_check() else None
    for defence in defences:
        board.push(defence)
        follows = _mating(board, moves, limits, [])
        board.pop()
        if follows is None:
            return None
        longest = max(longest, [defence, *follows], key=len)
    return longest
