"""Which tokens a request allows, apart from the form of its answer: none that end it too early, or only some."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
from jaxtyping import Int

from headway.generate.scheduler import Rule


class Narrowed:
    """A rule, or none, of whose tokens fewer are allowed."""

    def __init__(
        self, inner: Rule | None, allowed: Int[np.ndarray, "W"] | None, ends: Int[np.ndarray, "W"], min_tokens: int
    ) -> None:
        """`allowed` and `ends` have a bit for each token: those that may come at all, and those that may not come
        among the first `min_tokens`.
        """
        self._inner, self._allowed, self._others, self._left = inner, allowed, ~ends, min_tokens

    def fill(self, mask: np.ndarray) -> None:
        if self._inner is None:
            mask[:] = -1
        else:
            self._inner.fill(mask)
        if self._allowed is not None:
            mask &= self._allowed
        if self._left > 0:
            mask &= self._others

    def take(self, symbol: int) -> None:
        self._left -= 1
        if self._inner is not None:
            self._inner.take(symbol)


def narrowed(
    rule: Callable[[], Rule] | None,
    symbols: int,
    allowed: Collection[int] | None,
    ends: Iterable[int],
    min_tokens: int,
) -> Callable[[], Rule] | None:
    """What makes the rule of each answer: `rule` with fewer tokens, where that is asked for."""
    if allowed is None and not min_tokens:
        return rule
    bits = None if allowed is None else _bits(allowed, symbols)
    end_bits = _bits(ends, symbols)
    return lambda: Narrowed(None if rule is None else rule(), bits, end_bits, min_tokens)


def _bits(ids: Iterable[int], symbols: int) -> Int[np.ndarray, "W"]:
    marks = np.zeros(-(-symbols // 32) * 32, bool)
    marks[[each for each in ids if each < symbols]] = True
    return np.packbits(marks, bitorder="little").view(np.int32)
