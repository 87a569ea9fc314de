"""What a network sees of a position: planes of 64 squares from the side of who is to move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.codecs.fen import NOWHERE, squares

PIECE_PLANES = 12  # my PNBRQK, then theirs
ATTACK_PLANES = 12  # how many of each attack a square
STATE_PLANES = 7  # castling (mine K and Q, theirs), en passant, clock, repetition
CLOCK = 100.0  # half moves after which a game can be drawn; divides the plane of the clock
_OUTSIDE = 64
_STEPS = (
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
)  # files, ranks; four straight, four slanting
_JUMPS = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))


def planes_for(history: int) -> int:
    """How many planes there are with so many earlier positions."""
    return PIECE_PLANES * (1 + history) + ATTACK_PLANES + STATE_PLANES


def seen(positions: np.ndarray, black: np.ndarray | None = None) -> np.ndarray:
    """What stands on each square, uint8 [N, 64], from the side of who is to move (or of Black where `black` says so):
    0 empty, 1 to 6 mine, 7 to 12 theirs, and my first rank is the first.
    """
    board = squares(positions)
    turned = (positions["flags"] & 1).astype(bool) if black is None else black
    return np.where(turned[:, None], _OTHER[board.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)], board)


def attackers(board: np.ndarray) -> np.ndarray:
    """How many pieces of each kind attack each square, uint8 [N, 64, 12]; `board` is that of `seen`.

    A square looks along eight lines for the first piece on each, and to eight squares for knights. The boards are the
    last axis of all that is computed, so that each step is one over long rows.
    """
    framed = np.zeros((65, len(board)), np.uint8)
    framed[:64] = board.T
    first = framed[_LINES[6]]
    for step in range(5, -1, -1):
        here = framed[_LINES[step]]
        np.copyto(first, here, where=here > 0)
    near, jumps = framed[_LINES[0]], framed[_KNIGHTS]
    found = np.empty((ATTACK_PLANES, 64, len(board)), np.uint8)
    for side, pawns in ((0, _BELOW), (6, _ABOVE)):
        for kind, pieces in enumerate((near[pawns], jumps, first[4:], first[:4], first, near), side):
            np.sum((pieces == kind + 1).view(np.uint8), axis=0, dtype=np.uint8, out=found[kind])
    return found.transpose(2, 1, 0)


def planes(positions: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    """Planes, uint8 [N, 64, P]: `positions` are records [N], newest first, and `known`, bool [N, earlier], says which
    of the earlier ones there are; the others are empty boards.
    """
    newest = positions[0]
    black = (newest["flags"] & 1).astype(bool)
    board = seen(newest)
    found = np.zeros((len(newest), 64, planes_for(len(positions) - 1)), np.uint8)
    found[..., :PIECE_PLANES] = _ONE_HOT[board]
    for place, before in enumerate(positions[1:], 1):
        shown = np.where(known[:, place - 1, None], seen(before, black), 0)
        found[..., PIECE_PLANES * place : PIECE_PLANES * (place + 1)] = _ONE_HOT[shown]
    start = PIECE_PLANES * len(positions)
    found[..., start : start + ATTACK_PLANES] = attackers(board)
    found[..., start + ATTACK_PLANES :] = _state(newest, black)
    return found


def _state(positions: np.ndarray, black: np.ndarray) -> np.ndarray:
    found = np.zeros((len(positions), 64, STATE_PLANES), np.uint8)
    rights = positions["flags"][:, None] >> np.arange(1, 5) & 1
    found[..., :4] = np.where(black[:, None], rights[:, [2, 3, 0, 1]], rights)[:, None]
    passed = positions["passed"].astype(np.int64)
    rows = np.flatnonzero(passed != NOWHERE)
    found[rows, np.where(black, passed ^ 56, passed)[rows], 4] = 1
    found[..., 5] = np.minimum(positions["clock"], CLOCK)[:, None]
    found[..., 6] = positions["repeated"][:, None]
    return found


def _neighbour(square: int, files: int, ranks: int) -> int:
    file, rank = square % 8 + files, square // 8 + ranks
    return 8 * rank + file if 0 <= file < 8 and 0 <= rank < 8 else _OUTSIDE


# The square that lies so many steps from another along each line, [7, 8, 64], and those a knight's jump away, [8, 64].
_LINES = np.array(
    [[[_neighbour(s, f * step, r * step) for s in range(64)] for f, r in _STEPS] for step in range(1, 8)], np.int64
)
_KNIGHTS = np.array([[_neighbour(s, f, r) for s in range(64)] for f, r in _JUMPS], np.int64)
_BELOW, _ABOVE = [6, 7], [4, 5]  # my pawns attack a square from below, theirs from above
_OTHER = np.array([0, *range(7, 13), *range(1, 7)], np.uint8)
_ONE_HOT = np.eye(13, dtype=np.uint8)[:, 1:]
