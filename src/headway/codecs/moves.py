"""The 1,968 moves that chess has, as numbers: those of a queen or a knight between two squares, and promotions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FILES, RANKS = "abcdefgh", "12345678"
SQUARES = tuple(file + rank for rank in RANKS for file in FILES)  # a1 is 0, b1 is 1, h8 is 63
PROMOTIONS = "nbrq"
MOVERS = 1880  # the moves below this number are all that a side can make that plays up the board
_KNIGHT = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))


class Parts(NamedTuple):
    """Where moves start and end, int64 [N], and what a pawn becomes: a place in PROMOTIONS, or -1."""

    source: np.ndarray
    target: np.ndarray
    promotion: np.ndarray


def _table() -> tuple[str, ...]:
    """Moves in UCI's notation: pieces, then White's promotions, then Black's."""
    plain, promotions = [], ([], [])
    for source in range(64):
        for target in range(64):
            files, ranks = target % 8 - source % 8, target // 8 - source // 8
            straight = (files == 0) != (ranks == 0) or (abs(files) == abs(ranks) != 0)
            if straight or (files, ranks) in _KNIGHT:
                plain.append(SQUARES[source] + SQUARES[target])
            last = (source // 8, target // 8)
            if abs(files) <= 1 and last in ((6, 7), (1, 0)):
                promotions[last == (1, 0)].extend(SQUARES[source] + SQUARES[target] + piece for piece in PROMOTIONS)
    return (*plain, *promotions[0], *promotions[1])


MOVES = _table()
NUMBERS = {move: number for number, move in enumerate(MOVES)}


def mirrored(move: str) -> str:
    """A move as the other side would play it: a2a4 is a7a5."""
    return move[0] + str(9 - int(move[1])) + move[2] + str(9 - int(move[3])) + move[4:]


MIRROR = np.array([NUMBERS[mirrored(move)] for move in MOVES], np.int64)
"""The number of each move seen from the other side; its own inverse."""


def flipped(move: str) -> str:
    """A move on the board whose left is its right: a2a4 is h2h4."""
    turned = [FILES[7 - FILES.index(file)] for file in (move[0], move[2])]
    return turned[0] + move[1] + turned[1] + move[3:]


FLIP = np.array([NUMBERS[flipped(move)] for move in MOVES], np.int64)
"""The number of each move with left and right exchanged; its own inverse."""

PARTS = Parts(
    np.array([SQUARES.index(move[:2]) for move in MOVES], np.int64),
    np.array([SQUARES.index(move[2:4]) for move in MOVES], np.int64),
    np.array([PROMOTIONS.find(move[4]) if len(move) == 5 else -1 for move in MOVES], np.int64),
)
