"""How to search for a move, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event
from typing import Literal, get_args

Search = Literal["policy", "value", "puct"]
SEARCHES: tuple[str, ...] = get_args(Search)
_ASSUMED_MOVES = 30  # assumed remaining moves in a game
_MIN_SECONDS = 0.005  # seconds


@dataclass
class SearchLimits:
    """Maximum `nodes`, `depth` in half moves, and `seconds` for the move; None means no limit. `stop` ends the search
    at once.
    """

    nodes: int | None = None
    depth: int | None = None
    seconds: float | None = None
    stop: Event = field(default_factory=Event)
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        return self.stop.is_set() or self.seconds_left <= 0

    @property
    def seconds_left(self) -> float:
        """Remaining seconds."""
        return float("inf") if self.seconds is None else self.started + self.seconds - time.monotonic()


def share_of_clock(remaining: float, increment: float, moves_to_go: int | None, margin: float) -> float:
    """Return the seconds for a move: an even share of the remaining time plus most of the increment, but never the last
    `margin`.
    """
    available = max(0.0, remaining - margin)
    share = remaining / (moves_to_go + 1 if moves_to_go else _ASSUMED_MOVES) + 0.8 * increment
    return max(_MIN_SECONDS, min(share, 0.5 * available if moves_to_go != 1 else 0.9 * available))
