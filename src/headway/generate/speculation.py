"""Speculative decoding: the model checks several guessed tokens at a time (Leviathan et al. 2023).

Guesses come from a Guesser: Lookup finds them in the text so far, and `Draft` runs a small model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.errors import UserError
from headway.generate.prompts import context_of, device_of, make_prompt
from headway.generate.sampling import Sampler
from headway.generate.torch_sampling import sample_rows
from headway.nn.models import Generative, evaluation_mode
from headway.nn.models.kinds import is_causal

if TYPE_CHECKING:
    from headway.engine.pool import Pool

MAX_MATCH, MIN_MATCH = 4, 2  # number of last tokens to look up in earlier text; longer matches are tried first
MAX_GUESSES = 15  # guesses per step
_DECAY = 0.8  # decay of running means
_MIN_ACCEPTANCE = 0.4  # share of guesses that must be right; a token in a batch costs less than a separate step
_PAUSE, _MAX_PAUSE = 16, 256  # steps to pause when guessing did not pay off: the first time, and at most


class ExtendingModel(Generative, Protocol):
    """A model that can process several tokens of a sequence at once and roll them back."""

    def extend(self, ids: Int[Tensor, "B T"], decoding: Any) -> tuple[Float[Tensor, "B T C"], Any]:
        """Process T more tokens in each row; return the logits after each."""
        ...


class Guesser(Protocol):
    """Guesses the next tokens of one sequence. Guesses change the speed, never the output."""

    def guess(self, max_guesses: int) -> list[int]:
        """At most `max_guesses` next tokens; an empty list if there is no guess."""
        ...


class GuessLength(Protocol):
    """Decides how many tokens to guess."""

    def next_length(self) -> int:
        """How many tokens to guess now."""
        ...

    def update(self, guessed: int, accepted: int, seconds: float) -> None:
        """Record that of `guessed` guesses the first `accepted` were right, and how long producing accepted + 1 tokens
        took. A plain step has 0 guesses.
        """
        ...


class Lookup:
    """Guesses the tokens that followed an earlier occurrence of the last few (Saxena 2023, prompt lookup)."""

    def __init__(self, ids: list[int]) -> None:
        """The sequence appends to `ids`."""
        self.ids = ids
        self._run_ends: dict[tuple[int, ...], int] = {}  # the last position where each run of tokens ends
        self._known = 0  # number of indexed tokens

    def guess(self, max_guesses: int) -> list[int]:
        # Index all runs that end before the last token, because the token after them is known.
        for end in range(max(self._known, 1), len(self.ids)):
            for length in range(MIN_MATCH, MAX_MATCH + 1):
                if end >= length:
                    self._run_ends[tuple(self.ids[end - length : end])] = end
        self._known = len(self.ids)
        for length in range(MAX_MATCH, MIN_MATCH - 1, -1):
            start = self._run_ends.get(tuple(self.ids[-length:]))
            if start is not None:
                guesses: list[int] = []
                for index in range(start, start + max_guesses):  # past the end it wraps around
                    guesses.append(self.ids[index] if index < len(self.ids) else guesses[index - len(self.ids)])
                return guesses
        return []


class _Mean:
    """A running mean of durations. The first one does not count, because it includes extra work, such as compiling or
    processing the tokens generated during a pause.
    """

    def __init__(self) -> None:
        self.value = 0.0  # 0 until there are two
        self._started = False

    def add(self, seconds: float) -> None:
        if self._started:
            self.value = seconds if self.value == 0.0 else _DECAY * self.value + (1 - _DECAY) * seconds
        self._started = True


class TimedGuessLength:
    """Measures time: more while all guesses are right, fewer otherwise, and none
    while guessing does not pay off.
    """

    def __init__(self) -> None:
        self._length = 4
        self._skips, self._pause = 2, _PAUSE  # two plain steps first, to measure how long one takes
        self._step, self._gain = _Mean(), _Mean()  # seconds per plain step, and per token with guesses

    def next_length(self) -> int:
        if self._skips:
            self._skips -= 1
            return 0
        return self._length

    def update(self, guessed: int, accepted: int, seconds: float) -> None:
        if not guessed:
            self._step.add(seconds)
            return
        self._gain.add(seconds / (accepted + 1))
        self._length = min(2 * self._length, MAX_GUESSES) if accepted == guessed else max(accepted + 1, 2)
        if not (self._step.value and self._gain.value):
            return
        if self._gain.value <= self._step.value:
            self._pause = _PAUSE
        else:
            self._skips, self._pause = self._pause, min(2 * self._pause, _MAX_PAUSE)
            self._gain = _Mean()


class CountedGuessLength:
    """Uses only counts, for rows that share a step, so the same requests take the same steps on any machine. Pauses
    when too few guesses were right.
    """

    def __init__(self) -> None:
        self._length, self._skips, self._pause = 4, 0, _PAUSE
        self._rate = 1.0  # share of guesses that were right

    def next_length(self) -> int:
        return 0 if self._skips else self._length

    def update(self, guessed: int, accepted: int, seconds: float = 0.0) -> None:
        if not guessed:
            self._skips = max(0, self._skips - 1)
            return
        self._rate = _DECAY * self._rate + (1 - _DECAY) * accepted / guessed
        self._length = min(2 * self._length, MAX_GUESSES) if accepted == guessed else max(accepted + 1, 2)
        if self._rate >= _MIN_ACCEPTANCE:
            self._pause = _PAUSE
        else:
            self._skips, self._pause, self._rate = self._pause, min(2 * self._pause, _MAX_PAUSE), _MIN_ACCEPTANCE


def check_draft(
    path: Path, model: nn.Module, codec: Codec | None, draft_path: Path, draft: nn.Module, draft_codec: Codec | None
) -> None:
    """Raise UserError for a draft model that is not a language model, or whose vocabulary differs from the model's."""
    for checked_path, module, consequence in (
        (path, model, "cannot use a draft"),
        (draft_path, draft, "cannot be a draft"),
    ):
        if not is_causal(module):
            raise UserError(f"{checked_path} is not a language model and {consequence}; use a language model")
    config: Any = model.config
    draft_config: Any = draft.config
    different = (
        None
        if config.vocab_size == draft_config.vocab_size
        else f"{draft_config.vocab_size} and {config.vocab_size} tokens"
    )
    if isinstance(codec, TokenizerCodec) and isinstance(draft_codec, TokenizerCodec):
        different = codec.difference(draft_codec)
    elif codec is not draft_codec:
        different = "only one of them has a tokenizer"
    if different is not None:
        raise UserError(
            f"draft {draft_path} and model {path} have different vocabularies ({different}); use a draft with "
            "the same tokenizer"
        )


class Draft:
    """Guesses from a small model, sampled with the same uniform numbers as the sequence, so that where both models
    agree, they sample the same token at any temperature.

    If the sequence exceeds the draft's context, the draft processes only its end. It stops guessing after a token
    outside its vocabulary.
    """

    def __init__(
        self, model: Generative, ids: list[int], limit: int, sampler: Sampler, vocab_size: int, pool: Pool | None
    ) -> None:
        """The sequence appends up to `limit` tokens to `ids`, all below `vocab_size`; the threads of `pool` sample
        it.
        """
        self.model, self.vocab_size, self.pool = model, vocab_size, pool
        self._ids, self._sampler, self._end = ids, sampler, len(ids) + limit
        self._context = context_of(model) or self._end
        self._first = self._read = self._checked = 0
        self._logits: Float[Tensor, "1 C"]
        self._decoding: Any

    def guess(self, max_guesses: int) -> list[int]:
        ids, device = self._ids, device_of(self.model)
        max_guesses = min(max_guesses, self._context // 2)
        if max(ids[self._checked :], default=0) >= self.model.config.vocab_size or not max_guesses:
            return []
        self._checked = len(ids)
        with evaluation_mode(self.model):
            if not self._read or len(ids) + max_guesses - self._first > self._context:
                # Process the sequence, or only as much of its end as leaves half of the context for new tokens.
                fits = self._end <= self._context
                self._first = 0 if fits else max(0, len(ids) - max(1, self._context // 2))
                prompt = make_prompt([ids[self._first :]], None, device)
                capacity = min(self._context, self._end - self._first)
                self._logits, self._decoding = self.model.start(prompt, capacity)
                self._read = len(ids)
            # Process the tokens generated in the meantime.
            width = MAX_GUESSES + 1 if getattr(self.model, "extends", False) else 1
            for start in range(self._read, len(ids), width):
                new = torch.tensor([ids[start : start + width]], device=device)
                if width == 1:
                    self._logits, self._decoding = self.model.step(new[0], self._decoding)
                else:
                    logits, self._decoding = cast(ExtendingModel, self.model).extend(new, self._decoding)
                    self._logits = logits[:, -1]
            self._read = len(ids)
            # Guesses may be wrong, so they continue from a fork; accepted ones are processed again later.
            logits, ahead, guesses = self._logits, self._decoding.select(torch.tensor([0], device=device)), []
            while True:
                sampler = self._sampler.after(guesses)
                [event] = sample_rows(logits[:, : self.vocab_size], [0], [sampler], self.pool)
                if event.id is None:
                    return guesses
                guesses.append(event.id)
                if len(guesses) == max_guesses:
                    return guesses
                logits, ahead = self.model.step(torch.tensor(guesses[-1:], device=device), ahead)
