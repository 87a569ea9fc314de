"""The meaning of an evaluation in centipawns: the probabilities of win, draw and loss."""

from __future__ import annotations

import numpy as np

_EVEN = 100.0  # centipawns at which a win has a probability of 50 %, as in Stockfish
_SLOPE = 75.0  # centipawns that change the odds by a factor of e
_MATE = 10_000.0  # centipawns for a mate, minus 1 per move
_MAX_MATE_MOVES = 1000  # maximum moves to a mate
_DIGITS = 20  # maximum digits of a move count
_WIN_SLOPE = 0.00368208  # slope of the win probability per centipawn


def outcome(centipawns: np.ndarray | float) -> np.ndarray:
    """Return (win, draw, loss), float64 [..., 3], for the evaluated side: logistic curves on both sides of a draw."""
    score = np.clip(np.asarray(centipawns, np.float64), -_MATE, _MATE)
    win, loss = (1 / (1 + np.exp((_EVEN - signed) / _SLOPE)) for signed in (score, -score))
    return np.stack([win, 1 - win - loss, loss], axis=-1)


def worth(centipawns: np.ndarray | float) -> np.ndarray:
    """Return a move's worth compared with others in its position, float64 of any shape: the win probability from Ruoss
    et al. 2024, section 2, which still distinguishes clearly from barely won positions, while `outcome` is 1 for both.
    A mate in n moves is 1 + 0.1 / n, and being mated in n is -0.1 / n.
    """
    score = np.clip(np.asarray(centipawns, np.float64), -_MATE, _MATE)
    mate_distance = np.maximum(1.0, _MATE - np.abs(score))  # moves to the mate, if it is one
    return np.where(
        mate_distance <= _MAX_MATE_MOVES,
        0.5 + np.sign(score) * (0.5 + 0.1 / mate_distance),
        1 / (1 + np.exp(-_WIN_SLOPE * score)),
    )


def expected(outcomes: np.ndarray) -> np.ndarray:
    """Return the expected score, [...] of [..., 3]: a win is 1, a draw a half."""
    return outcomes[..., 0] + outcomes[..., 1] / 2


def read_score(text: str) -> float:
    """Parse centipawns: "0.34" (pawns) or "#-3" (mated in three), as in %eval. ValueError for other text."""
    if not text.startswith("#"):
        return 100 * float(text)
    if len(text) > _DIGITS:
        raise ValueError("a mate cannot take so many moves")
    return mate(int(text[1:]))


def mate(moves: int) -> float:
    """Return the centipawns for a mate in `moves` moves, negative if mated."""
    return np.copysign(_MATE - abs(moves), moves if moves else -1)


def centipawns(value: float) -> int:
    """The evaluation in centipawns for an expected score between 0 and 1: the inverse of `expected(outcome(...))`, for
    display.
    """
    low, high = -_MATE, _MATE
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if float(expected(outcome(middle))) < value else (low, middle)
    return round(low)


def parse_result(text: str) -> np.ndarray | None:
    """Return the outcome for White from a game's result; None if the game did not end."""
    rows = {"1-0": (1.0, 0.0, 0.0), "1/2-1/2": (0.0, 1.0, 0.0), "0-1": (0.0, 0.0, 1.0)}
    return np.array(rows[text]) if text in rows else None
