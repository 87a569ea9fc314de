"""How much stronger one player is than another, by the games between them."""

from __future__ import annotations

import math
from typing import Any

from headway.errors import UserError


def elo_difference(wins: int, draws: int, losses: int) -> dict[str, Any]:
    """The share of points and the difference in Elo's scale, each with its interval at 95 %; None where it has no end.

    The interval of the share is Wilson's, for as many games as would have its variance without draws.
    """
    games = wins + draws + losses
    if games == 0:
        raise UserError("0 games say nothing of strength; play some")
    score = (wins + draws / 2) / games
    variance = (wins + draws / 4) / games - score**2
    effective = games * score * (1 - score) / variance if variance > 0 else games
    low, high = _wilson(score, effective)
    return {
        "score": score,
        "score_interval": [low, high],
        "elo": _elo(score),
        "elo_interval": [_elo(low), _elo(high)],
        "samples": games,
    }


def _wilson(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _elo(score: float) -> float | None:
    """Elo 1978: the difference by which a player is expected to get such a share of the points."""
    return None if score <= 1e-9 or score >= 1 - 1e-9 else -400 * math.log10(1 / score - 1)
