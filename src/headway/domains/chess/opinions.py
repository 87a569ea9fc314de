"""What was thought of positions, kept for when they come again: by another order of moves, or in the next search."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Sequence

from headway.domains.chess.judge import Judge, Opinion, Place

MEGABYTES = 64  # that the cache takes if no one says
_ENTRY = 420  # bytes of an entry beside its key and its policy's numbers: two arrays, a tuple, a place in a dictionary
_NEWEST = struct.Struct("<8Q5H").pack
_EARLIER = struct.Struct("<8QH").pack


class OpinionCache:
    """A judge that asks another one and keeps its opinions, in at most `megabytes`; those that were not asked for
    longest go first.

    The key is all that a judge sees, so that nothing but the same position, with those before it, the clock and the
    repetitions, has the same opinion; there is no hash that could collide.
    """

    def __init__(self, judge: Judge) -> None:
        self.inner = judge
        self.has_policy, self.has_value, self.history = judge.has_policy, judge.has_value, judge.history
        self.rate = 50.0  # positions a second, as measured when the other one was asked last
        self._room, self._taken = MEGABYTES << 20, 0
        self._kept: OrderedDict[bytes, Opinion] = OrderedDict()

    def judge(self, places: Sequence[Place]) -> list[Opinion]:
        """Opinions of positions that have a legal move; those that are not known are judged together, each once."""
        keys = [_key(place) for place in places]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        unknown = {key: place for key, place in zip(keys, places) if key not in found}
        if unknown:
            found |= zip(unknown, self.ask(list(unknown.values())))
        for key in keys:
            self._keep(key, found[key])
        self._shrink()
        return [found[key] for key in keys]

    def ask(self, places: Sequence[Place]) -> list[Opinion]:
        """What the other judge says now, known or not."""
        started = time.monotonic()
        found = self.inner.judge(places)
        self.rate = len(places) / max(1e-6, time.monotonic() - started)
        return found

    def resize(self, megabytes: int) -> None:
        self._room = megabytes << 20
        self._shrink()

    def _keep(self, key: bytes, opinion: Opinion) -> None:
        if key not in self._kept:
            self._taken += _size(key, opinion)
            self._kept[key] = opinion
        self._kept.move_to_end(key)

    def _shrink(self) -> None:
        while self._taken > self._room:
            self._taken -= _size(*self._kept.popitem(last=False))


def _key(place: Place) -> bytes:
    """The newest position as it is, and of those before it what stood where."""
    newest, *earlier = place.records
    return _NEWEST(*newest) + b"".join(_EARLIER(*position[:9]) for position in earlier)


def _size(key: bytes, opinion: Opinion) -> int:
    return _ENTRY + len(key) + (0 if opinion.policy is None else opinion.policy.nbytes)
