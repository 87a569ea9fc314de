"""Sequences that a scheduler runs, and fair queueing: owners with requests get equal shares of the compute, and
each owner's oldest requests come first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from typing import Any

from headway.codecs import Codec
from headway.generate.sampling import Sampler
from headway.generate.score import TokenScore
from headway.generate.sequences import THINKING, AnswerReader, Event, FinishReason, Ids, Limits, TextStream
from headway.generate.speculation import Guesser, GuessLength
from headway.generate.stepper import RowBatch


class Sample:
    """One sequence: its ids, text, sampler and row. Without a row, it is waiting or following a sample that processes
    the same prompt.
    """

    def __init__(
        self,
        number: int,
        owner: str,
        prompt: Ids,
        sampler: Sampler,
        codec: Codec | None,
        limits: Limits,
        context: int | None,
        prompt_top: int | None = None,
        generates: bool = True,
        reader: AnswerReader | None = None,
    ) -> None:
        """`prompt_top` is how many of the most probable tokens to report per prompt token; None means the prompt is not
        scored. If `generates` is False, the sample ends with its prompt. `reader` separates thinking from the answer.
        """
        self.ticket = 0  # the request's ticket, once submitted
        self.number, self.owner, self.sampler = number, owner, sampler
        self.prompt_top, self.generates = prompt_top, generates
        self.ids, self.prompt_length = list(prompt), len(prompt)  # the prompt and the generated tokens
        self.limit = limits.max_new_tokens if context is None else min(limits.max_new_tokens, context - len(prompt))
        self.scores: list[TokenScore] = []  # scores of the prompt's tokens, starting with the second
        self.guesser: Guesser | None = None  # None: its tokens are not guessed
        self.guess_length: GuessLength | None = None
        self.batch: RowBatch | None = None  # opens its row; None: any empty row will do
        self.index = 0  # of its row in the batch
        self.row: Any = None  # Row of the engine, or TorchRow
        self.processed = 0  # how many of its ids the row has processed
        self.cached_tokens = len(prompt)  # prompt tokens that were cached every time it started
        self.followers: list[Sample] = []
        self.done = False
        self._reader = reader
        self._stop_ids, self._text = limits.all_stop_ids(codec), TextStream(codec, prompt, limits.stop, reader)

    @property
    def age(self) -> tuple[int, int]:
        """Sort key: older samples come first."""
        return self.ticket, self.number

    @property
    def generated(self) -> int:
        """How many tokens it has generated, without the eos token."""
        return len(self.ids) - self.prompt_length

    @property
    def unprocessed(self) -> int:
        return len(self.ids) - self.processed

    @property
    def prefilling(self) -> bool:
        return self.row is not None and not self.generated

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt is still to be scored."""
        return self.prompt_top is not None and not self.generated

    def push(self, event: Event) -> None:
        """Append the event's token, unless it ends the sequence; add the final text and, at the end, the reason."""
        assert event.id is not None
        self.sampler.take(event.id)
        if event.id in self._stop_ids:
            event.end, event.id = (event.id, event.logprob), None
            self.finish(event, "stop")
            return
        self.ids.append(event.id)
        was_thinking = self._reader is not None and self._reader.state == THINKING
        event.text = self._text.push(event.id)
        if self._reader is not None:
            event.reasoning, event.recipient = self._reader.reasoning, self._reader.recipient
            event.thinking = was_thinking and self._reader.state == THINKING
        if self._text.stopped or self.generated == self.limit:
            self.finish(event, "length")

    def finish(self, event: Event, reason: FinishReason) -> None:
        """End the sequence with this event, which gets the text that was held back."""
        event.text += self._text.finish()
        if self._reader is not None and not self._text.stopped:
            event.reasoning += self._reader.reasoning
        event.reason = "stop" if self._text.stopped else reason
        self.done = True


class FairQueue:
    """The waiting samples, and the tokens computed for each owner with active samples (Sheng et al. 2024, virtual token
    counter).
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Sample]] = {}
        self.served: dict[str, int] = {}  # tokens computed for each owner

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, sample: Sample) -> None:
        """Queue a sample. A new owner starts with the count of the least-served owner."""
        self.served.setdefault(sample.owner, min(self.served.values(), default=0))
        insort(self._waiting.setdefault(sample.owner, []), sample, key=lambda entry: entry.age)

    def next(self) -> Sample | None:
        """The sample to start next."""
        return min((samples[0] for samples in self._waiting.values()), key=self.priority, default=None)

    def start(self, sample: Sample) -> None:
        """Remove a sample because it starts."""
        self._waiting[sample.owner].remove(sample)
        self._tidy()

    def drop(self, tickets: Collection[int]) -> None:
        """Remove requests."""
        for samples in self._waiting.values():
            samples[:] = [sample for sample in samples if sample.ticket not in tickets]
        self._tidy()

    def forget(self, present: Collection[str]) -> None:
        """Drop the counts for owners that have nothing waiting and are not in `present`."""
        self.served = {o: n for o, n in self.served.items() if o in present or o in self._waiting}

    def priority(self, sample: Sample) -> tuple[int, tuple[int, int]]:
        """Sort key: samples of the least-served owners come first."""
        return self.served[sample.owner], sample.age

    def _tidy(self) -> None:
        self._waiting = {owner: samples for owner, samples in self._waiting.items() if samples}
