"""How to look for a move, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event
from typing import Literal, get_args

Search = Literal["policy", "value", "puct"]
SEARCHES: tuple[str, ...] = get_args(Search)
_MOVES_LEFT = 30  # that a game is taken to last where no one says
_LEAST = 0.005  # seconds


@dataclass
class SearchLimits:
    """`nodes` of search, `depth` in half moves, `seconds` for the move; None is no limit. `stop` ends it at once."""

    nodes: int | None = None
    depth: int | None = None
    seconds: float | None = None
    stop: Event = field(default_factory=Event)
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        return self.stop.is_set() or self.left <= 0

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.seconds is None else self.started + self.seconds - time.monotonic()


def share_of_clock(remaining: float, increment: float, moves_to_go: int | None, margin: float) -> float:
    """Seconds for a move on a clock: an even share and most of the increment, and never into the last `margin`."""
    left = max(0.0, remaining - margin)
    share = remaining / (moves_to_go + 1 if moves_to_go else _MOVES_LEFT) + 0.8 * increment
    return max(_LEAST, min(share, 0.5 * left if moves_to_go != 1 else 0.9 * left))
