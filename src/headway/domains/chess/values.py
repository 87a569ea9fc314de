"""What an evaluation in centipawns means: the chances to win, to draw and to lose."""

from __future__ import annotations

import numpy as np

_EVEN = 100.0  # centipawns at which a win is as likely as not, as Stockfish scales its own
_SLOPE = 75.0  # centipawns by which the odds change e times
_MATE = 10_000.0  # what stands for a mate, less a centipawn a move
_LONGEST = 1000  # moves of a mate
_DIGITS = 20  # of a number of moves, with its signs
_CHANCE = 0.00368208  # a centipawn, in the chance to win


def outcome(centipawns: np.ndarray | float) -> np.ndarray:
    """(win, draw, loss), float64 [..., 3], of who has the evaluation: logistic curves on both sides of a draw."""
    score = np.clip(np.asarray(centipawns, np.float64), -_MATE, _MATE)
    win, loss = (1 / (1 + np.exp((_EVEN - side) / _SLOPE)) for side in (score, -score))
    return np.stack([win, 1 - win - loss, loss], axis=-1)


def worth(centipawns: np.ndarray | float) -> np.ndarray:
    """What a move is worth beside the others of its position, float64 of any shape: the chance to win of Ruoss et al.
    2024, section 2, which still tells much won from just won, where `outcome` is 1 for both. A mate in n moves lies
    beyond it, at 1 + 0.1 / n, and being mated in n at -0.1 / n.
    """
    score = np.clip(np.asarray(centipawns, np.float64), -_MATE, _MATE)
    left = np.maximum(1.0, _MATE - np.abs(score))  # moves to the mate, if it is one
    return np.where(left <= _LONGEST, 0.5 + np.sign(score) * (0.5 + 0.1 / left), 1 / (1 + np.exp(-_CHANCE * score)))


def expected(outcomes: np.ndarray) -> np.ndarray:
    """The expected score, [...] of [..., 3]: a win is 1, a draw a half."""
    return outcomes[..., 0] + outcomes[..., 1] / 2


def read_score(text: str) -> float:
    """Centipawns of "0.34" (pawns) or "#-3" (mate in three against), as %eval has them. ValueError for others."""
    if not text.startswith("#"):
        return 100 * float(text)
    if len(text) > _DIGITS:
        raise ValueError("no mate takes so many moves")
    return mate(int(text[1:]))


def mate(moves: int) -> float:
    """Centipawns that stand for a mate in so many moves, below 0 against."""
    return np.copysign(_MATE - abs(moves), moves if moves else -1)


def centipawns(value: float) -> int:
    """The evaluation of an expected score between 0 and 1: the inverse of `expected(outcome(...))`, for display."""
    low, high = -_MATE, _MATE
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if float(expected(outcome(middle))) < value else (low, middle)
    return round(low)


def result_of(text: str) -> np.ndarray | None:
    """The outcome for White of a game's result; None for one that did not end."""
    rows = {"1-0": (1.0, 0.0, 0.0), "1/2-1/2": (0.0, 1.0, 0.0), "0-1": (0.0, 0.0, 1.0)}
    return np.array(rows[text]) if text in rows else None
