"""The tokens a request allows, apart from its response format: only some ids, and no end before a minimum length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
from jaxtyping import Int

from headway.generate.sampling import Rule


class RestrictedRule:
    """Restricts the tokens of another rule, or all tokens."""

    def __init__(
        self, inner: Rule | None, allowed: Int[np.ndarray, "W"] | None, stop_mask: Int[np.ndarray, "W"], min_tokens: int
    ) -> None:
        """`allowed` and `stop_mask` have one bit per token: the allowed tokens, and those that may not occur among the
        first `min_tokens`.
        """
        self._inner, self._allowed, self._not_stop, self._min_tokens_left = inner, allowed, ~stop_mask, min_tokens

    def fill(self, mask: np.ndarray) -> None:
        if self._inner is None:
            mask[:] = -1
        else:
            self._inner.fill(mask)
        if self._allowed is not None:
            mask &= self._allowed
        if self._min_tokens_left > 0:
            mask &= self._not_stop

    def take(self, token: int) -> None:
        self._min_tokens_left -= 1
        if self._inner is not None:
            self._inner.take(token)


def restrict_rule(
    rule: Callable[[], Rule] | None,
    vocab_size: int,
    allowed: Collection[int] | None,
    stop_ids: Iterable[int],
    min_tokens: int,
) -> Callable[[], Rule] | None:
    """Makes the rule for each answer: `rule`, restricted if the request limits its tokens."""
    if allowed is None and not min_tokens:
        return rule
    allowed_mask = None if allowed is None else _token_mask(allowed, vocab_size)
    stop_mask = _token_mask(stop_ids, vocab_size)
    return lambda: RestrictedRule(None if rule is None else rule(), allowed_mask, stop_mask, min_tokens)


def _token_mask(ids: Iterable[int], vocab_size: int) -> Int[np.ndarray, "W"]:
    mask = np.zeros(-(-vocab_size // 32) * 32, bool)
    mask[[id for id in ids if id < vocab_size]] = True
    return np.packbits(mask, bitorder="little").view(np.int32)
