"""Tokens that a request allows, apart from its response format: only some ids, and no end before a minimum length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
from jaxtyping import Int

from headway.generate.scheduler import Rule


class Narrowed:
    """Restricts the tokens of another rule, or all tokens."""

    def __init__(
        self, inner: Rule | None, allowed: Int[np.ndarray, "W"] | None, ends: Int[np.ndarray, "W"], min_tokens: int
    ) -> None:
        """`allowed` and `stop_mask` have one bit per token: the allowed tokens, and those that may not occur among the
        first `min_tokens`.
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
    """Makes the rule of each answer: `rule`, restricted if the request limits its tokens."""
    if allowed is None and not min_tokens:
        return rule
    bits = None if allowed is None else _bits(allowed, symbols)
    end_bits = _bits(ends, symbols)
    return lambda: Narrowed(None if rule is None else rule(), bits, end_bits, min_tokens)


def _bits(ids: Iterable[int], symbols: int) -> Int[np.ndarray, "W"]:
    marks = np.zeros(-(-symbols // 32) * 32, bool)
    marks[[each for each in ids if each < symbols]] = True
    return np.packbits(marks, bitorder="little").view(np.int32)
