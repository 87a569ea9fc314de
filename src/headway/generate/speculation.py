"""Speculative decoding: guessed tokens that the model checks several at a time (Leviathan et al. 2023).

Guesses come from a Guesser: Lookup finds them in the text so far, `Draft` runs a small model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.errors import UserError
from headway.generate.prompts import context_of, device_of, make_prompt
from headway.generate.sampling import Sampler
from headway.nn.models import Generative
from headway.nn.models.kinds import is_causal

LONGEST, SHORTEST = 4, 2  # tokens that must match an earlier occurrence, the more the better
MOST = 15  # guesses per step
_KEEP = 0.8  # decay of running means
_WORTH = 0.4  # share of guesses that must be right: a token in a batch costs less than a step alone
_PAUSE, _LONGEST_PAUSE = 16, 256  # steps without guesses after they did not pay: the first time, and at most


class Extending(Generative, Protocol):
    """A model that processes several tokens of a sequence at once and can roll back behind them."""

    def extend(self, ids: Int[Tensor, "B T"], decoding: Any) -> tuple[Float[Tensor, "B T C"], Any]:
        """Process T more tokens of each row; return the logits after each."""
        ...


class Guesser(Protocol):
    """Guesses the next tokens of one sequence. Guesses change the speed, never the output."""

    def add(self, symbol: int) -> None:
        """Append the next token of the sequence."""
        ...

    def guess(self, most: int) -> list[int]:
        """At most `max_guesses` next tokens; an empty list if it has no guess."""
        ...


class Lookup:
    """Guesses the tokens that followed an earlier occurrence of the last few (Saxena 2023, prompt lookup)."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self._places: dict[tuple[int, ...], int] = {}  # a run of tokens, and its last end
        self._known = 0  # number of indexed tokens

    def add(self, symbol: int) -> None:
        self.ids.append(symbol)

    def guess(self, most: int) -> list[int]:
        # Index all runs that end before the last token: what follows them is known.
        for end in range(max(self._known, 1), len(self.ids)):
            for length in range(SHORTEST, LONGEST + 1):
                if end >= length:
                    self._places[tuple(self.ids[end - length : end])] = end
        self._known = len(self.ids)
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._places.get(tuple(self.ids[-length:]))
            if place is not None:
                found: list[int] = []
                for index in range(place, place + most):  # past the end it wraps around
                    found.append(self.ids[index] if index < len(self.ids) else found[index - len(self.ids)])
                return found
        return []


class _Mean:
    """A running mean of times. The first time does not count: it includes work that the others lack, such as compiling,
    or processing what was generated during a pause.
    """

    def __init__(self) -> None:
        self.value = 0.0  # 0 until the second time
        self._begun = False

    def add(self, seconds: float) -> None:
        if self._begun:
            self.value = seconds if self.value == 0.0 else _KEEP * self.value + (1 - _KEEP) * seconds
        self._begun = True


class Boldness:
    """How many tokens to guess, by measured time: more while all guesses are right, fewer otherwise, and none while
    guessing does not pay.
    """

    def __init__(self) -> None:
        self._most = 4
        self._rest, self._pause = 2, _PAUSE  # two plain steps first, which measure a step
        self._step, self._gain = _Mean(), _Mean()  # seconds per plain step, and per token with guesses

    def most(self) -> int:
        """How many tokens to guess now."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._most

    def judge(self, guessed: int, right: int, seconds: float) -> None:
        """Record the outcome of `guessed` guesses, of which the first `accepted` were right, in a time that produced
        accepted + 1 tokens; 0 guesses are a plain step.
        """
        if not guessed:
            self._step.add(seconds)
            return
        self._gain.add(seconds / (right + 1))
        self._most = min(2 * self._most, MOST) if right == guessed else max(right + 1, 2)
        if not (self._step.value and self._gain.value):
            return
        if self._gain.value <= self._step.value:
            self._pause = _PAUSE
        else:
            self._rest, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._gain = _Mean()


class Prudence:
    """How many tokens to guess where many rows share a step, by counts alone: the same requests take the same steps on
    any machine. Pauses after too few guesses were right.
    """

    def __init__(self) -> None:
        self._most, self._rest, self._pause = 4, 0, _PAUSE
        self._rate = 1.0  # share of guesses that were right

    def most(self) -> int:
        """How many tokens to guess now."""
        return 0 if self._rest else self._most

    def judge(self, guessed: int, right: int) -> None:
        """Record the outcome of `guessed` guesses, of which the first `accepted` were right, or of a step without
        guesses.
        """
        if not guessed:
            self._rest = max(0, self._rest - 1)
            return
        self._rate = _KEEP * self._rate + (1 - _KEEP) * right / guessed
        self._most = min(2 * self._most, MOST) if right == guessed else max(right + 1, 2)
        if self._rate >= _WORTH:
            self._pause = _PAUSE
        else:
            self._rest, self._pause, self._rate = self._pause, min(2 * self._pause, _LONGEST_PAUSE), _WORTH


class Speculation:
    """Runs the steps of one sequence with a model that extends; the logits equal those of single steps, bit for bit."""

    def __init__(self, model: Extending, guesser: Guesser, limit: int) -> None:
        """`limit` is the maximum number of tokens to generate."""
        self.model, self.guesser = model, guesser
        self.boldness = Boldness()
        self._left = limit
        self._guesses: list[int] = []
        self._right = 0  # number of guesses that were right so far
        self._logits = torch.empty(0)
        self._seconds = 0.0

    def step(self, ids: Int[Tensor, "1"], decoding: Any) -> tuple[Float[Tensor, "1 C"], Any]:
        """Like the model's own step: the logits after one more token."""
        symbol = int(ids[0])
        self.guesser.add(symbol)
        self._left -= 1
        if self._guesses[self._right : self._right + 1] == [symbol]:
            self._right += 1
            return self._logits[:, self._right], decoding.at(decoding.positions + 1)
        if self._guesses:
            self.boldness.judge(len(self._guesses), self._right, self._seconds)
        started = time.perf_counter()
        most = min(self.boldness.most(), self._left)
        self._guesses, self._right = self.guesser.guess(most) if most else [], 0
        if not self._guesses:
            logits, after = self.model.step(ids, decoding)
            self.boldness.judge(0, 0, time.perf_counter() - started)
            return logits, after
        both = torch.tensor([[symbol, *self._guesses]], device=ids.device)
        self._logits, _ = self.model.extend(both, decoding)
        self._seconds = time.perf_counter() - started
        return self._logits[:, 0], decoding.at(decoding.positions + 1)


def check_draft(
    place: Path, model: nn.Module, codec: Codec | None, draft_place: Path, draft: nn.Module, draft_codec: Codec | None
) -> None:
    """Raise UserError for a draft that is not a language model, or whose vocabulary differs from the model's."""
    for here, one, what in ((place, model, "cannot use a draft"), (draft_place, draft, "cannot be a draft")):
        if not is_causal(one):
            raise UserError(f"{here} is not a language model and {what}; use a language model")
    own: Any = model.config
    other: Any = draft.config
    different = None if own.symbols == other.symbols else f"{other.symbols} tokens against {own.symbols}"
    if isinstance(codec, TokenizerCodec) and isinstance(draft_codec, TokenizerCodec):
        different = codec.difference(draft_codec)
    elif codec is not draft_codec:
        different = "only one of them has a tokenizer"
    if different is not None:
        raise UserError(
            f"the vocabulary of the draft {draft_place} differs from that of {place} ({different}); use a draft with "
            "the same tokenizer"
        )


class Draft:
    """Guesses by a small model, sampled with the same uniform numbers as the sequence: where both models agree, they
    sample the same token at any temperature.

    If the sequence exceeds the draft's context, it processes the end. It stops guessing after a token outside its
    vocabulary.
    """

    def __init__(self, model: Generative, prompt: Sequence[int], sampler: Sampler, symbols: int, limit: int) -> None:
        """`sampler` samples the sequence, at most `limit` tokens below `vocab_size`."""
        self.model, self.sampler, self.symbols = model, sampler, symbols
        self.ids = list(prompt)
        self._prompt, self._end = len(prompt), len(prompt) + limit
        self._context = context_of(model) or self._end
        self._strange = not all(symbol < model.config.symbols for symbol in prompt)
        if not self._strange:
            self._begin()

    def add(self, symbol: int) -> None:
        self.ids.append(symbol)
        self._strange |= symbol >= self.model.config.symbols

    def guess(self, most: int) -> list[int]:
        most = min(most, self._context // 2)
        if self._strange or not most:
            return []
        if len(self.ids) + most - self._first > self._context:
            self._begin()
        # Process the tokens generated since.
        width = MOST + 1 if getattr(self.model, "extends", False) else 1
        for start in range(self._read, len(self.ids), width):
            new = torch.tensor([self.ids[start : start + width]], device=self._device)
            if width == 1:
                self._logits, self._decoding = self.model.step(new[0], self._decoding)
            else:
                logits, self._decoding = cast(Extending, self.model).extend(new, self._decoding)
                self._logits = logits[:, -1]
        self._read = len(self.ids)
        # Guesses may be wrong, so they continue from a fork; accepted ones are processed again later.
        logits, ahead, found = self._logits, self._decoding.select(torch.tensor([0], device=self._device)), []
        while True:
            step = len(self.ids) - self._prompt + len(found)
            found.append(self.sampler.foresee(logits[:, : self.symbols], step, found))
            if len(found) == most:
                return found
            logits, ahead = self.model.step(torch.tensor(found[-1:], device=self._device), ahead)

    @property
    def _device(self) -> torch.device:
        return device_of(self.model)

    def _begin(self) -> None:
        """Process the sequence, or so much of its end that half of the context remains for new tokens."""
        fits = self._end <= self._context
        self._first = 0 if fits else max(0, len(self.ids) - max(1, self._context // 2))
        capacity = min(self._context, self._end - self._first)
        prompt = make_prompt([self.ids[self._first :]], None, self._device)
        self._logits: Float[Tensor, "1 C"]
        self._decoding: Any
        self._logits, self._decoding = self.model.start(prompt, capacity)
        self._read = len(self.ids)
