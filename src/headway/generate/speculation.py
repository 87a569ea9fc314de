"""Guesses of what comes next, which the model checks several at a time: the tokens are the same as without.

Leviathan et al. 2023 draft with a small model; here the draft is looked up: what followed the last few tokens when they
stood in the text before (Saxena 2023, prompt lookup).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.models import Generative

LONGEST, SHORTEST = 4, 2  # tokens that must agree with an earlier place, the more the better
_MOST = 15  # guesses at once
_KEEP = 0.8  # of a running mean that stays with each new value
_PAUSE = 16  # steps without a guess after guesses did not pay


class Extending(Generative, Protocol):
    """A model that reads several symbols of a sequence at once and can go back behind them."""

    def extend(self, ids: Int[Tensor, "B T"], decoding: Any) -> tuple[Float[Tensor, "B T C"], Any]:
        """T more symbols of each row, and the logits after each."""
        ...


class Lookup:
    """Guesses for one sequence, for as long as they pay: more at once while all are right, fewer when none is."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self._places: dict[tuple[int, ...], int] = {}  # a run of tokens, and where it last ended
        self._known = 0  # how many tokens are in the places
        self._most = 4
        self._rest = 0
        self._step, self._gain = 0.0, 0.0  # seconds of a step, and of a token by guesses

    def add(self, symbol: int) -> None:
        """The next token of the sequence."""
        self.ids.append(symbol)

    def guess(self) -> list[int]:
        """What may come next; nothing where no earlier place is like this one, or guesses do not pay."""
        self._learn()
        if self._rest:
            self._rest -= 1
            return []
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._places.get(tuple(self.ids[-length:]))
            if place is not None:
                return self._onwards(place)
        return []

    def _onwards(self, place: int) -> list[int]:
        """What follows a place; beyond the end it goes round."""
        found: list[int] = []
        for index in range(place, place + self._most):
            found.append(self.ids[index] if index < len(self.ids) else found[index - len(self.ids)])
        return found

    def judge(self, guessed: int, right: int, seconds: float) -> None:
        """What came of `guessed` guesses, of which the first `right` were right, in a time that gave right + 1 tokens;
        with 0 guesses it was a plain step.
        """
        if not guessed:
            self._step = _mean(self._step, seconds)
            return
        self._gain = _mean(self._gain, seconds / (right + 1))
        self._most = min(2 * self._most, _MOST) if right == guessed else max(right + 1, 2)
        if self._step and self._gain > self._step:
            self._rest, self._gain = _PAUSE, 0.0

    def _learn(self) -> None:
        """Note all runs that end before the last token: what follows them is known."""
        for end in range(max(self._known, 1), len(self.ids)):
            for length in range(SHORTEST, LONGEST + 1):
                if end >= length:
                    self._places[tuple(self.ids[end - length : end])] = end
        self._known = len(self.ids)


def _mean(before: float, value: float) -> float:
    return value if before == 0.0 else _KEEP * before + (1 - _KEEP) * value


class Speculation:
    """The steps of one sequence, by a model that extends: its logits are those of its steps, bit for bit."""

    def __init__(self, model: Extending, prompt: Sequence[int], limit: int) -> None:
        """`limit` is the most symbols that will be asked for."""
        self.model = model
        self.lookup = Lookup(prompt)
        self._end = len(prompt) + limit
        self._guesses: list[int] = []
        self._right = 0  # how many of the guesses have come true
        self._logits = torch.empty(0)
        self._seconds = 0.0

    def step(self, ids: Int[Tensor, "1"], decoding: Any) -> tuple[Float[Tensor, "1 C"], Any]:
        """As the model's own step: the logits after one more symbol."""
        symbol = int(ids[0])
        self.lookup.add(symbol)
        if self._guesses[self._right : self._right + 1] == [symbol]:
            self._right += 1
            return self._logits[:, self._right], decoding.at(decoding.positions + 1)
        if self._guesses:
            self.lookup.judge(len(self._guesses), self._right, self._seconds)
        self._guesses, self._right = self.lookup.guess()[: max(0, self._end - len(self.lookup.ids))], 0
        started = time.perf_counter()
        if not self._guesses:
            logits, after = self.model.step(ids, decoding)
            self.lookup.judge(0, 0, time.perf_counter() - started)
            return logits, after
        both = torch.tensor([[symbol, *self._guesses]], device=ids.device)
        self._logits, _ = self.model.extend(both, decoding)
        self._seconds = time.perf_counter() - started
        return self._logits[:, 0], decoding.at(decoding.positions + 1)
