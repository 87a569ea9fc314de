"""One sequence: when it ends, its text, and the events that report its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from headway.codecs import Codec
from headway.errors import ConfigError, UserError
from headway.io.arguments import check_fields, format_value
from headway.io.summary_card import SummaryCard, summary_repr

if TYPE_CHECKING:
    from headway.generate.sampling import Sampler
    from headway.generate.score import TokenScore
    from headway.generate.speculation import Guesser, GuessLength
    from headway.generate.stepper import RowBatch

Ids = Sequence[int]
_PRIMING = 8  # prompt tokens that may affect how the first new token decodes (a space, half a character)


@dataclass(frozen=True)
class Limits:
    """When generation ends: before any string in `stop`, before any id in `stop_ids`, at the eos token unless
    `ignore_end` is set, or after `max_new_tokens`.
    """

    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; use an integer of at least 1")
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(text, str) for text in self.stop):
            raise ConfigError(f"stop is {format_value(self.stop)}; use a tuple of strings")
        if "" in self.stop:
            raise ConfigError("stop contains an empty string, which matches everywhere; remove it")

    def all_stop_ids(self, codec: Codec | None) -> frozenset[int]:
        """The ids that end a sequence."""
        eos = codec.eos_id if codec is not None and not self.ignore_end else None
        return frozenset(self.stop_ids) if eos is None else frozenset((eos, *self.stop_ids))


class TextStream:
    """Decodes the text after a prompt as its tokens arrive; the text never contains a stop string.

    Text that may be the start of a stop string is held back until it turns out not to be.
    """

    def __init__(self, codec: Codec | None, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        """Without a codec there is no text, and stop strings cannot be found."""
        if codec is None and stop:
            raise UserError(f"stop string {stop[0]!r} needs text, but there is no tokenizer; use stop_ids instead")
        self._decoder = None if codec is None else codec.stream()
        self._stop = stop
        self._pending = ""
        self.stopped = False
        if self._decoder is not None:
            for token in prompt[-_PRIMING:]:
                self._decoder.push(token)

    def push(self, token: int) -> str:
        """The text that becomes final with this token. `stopped` becomes True at a stop string."""
        if self._decoder is None:
            return ""
        new_text = self._decoder.push(token)
        return self._release(new_text) if self._stop else new_text

    def finish(self) -> str:
        """The text that was still held back."""
        if self._decoder is None or self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        pending, self._pending = self._pending, ""
        return text if self.stopped else text + pending

    def _release(self, new_text: str) -> str:
        text = self._pending + new_text
        matches = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if matches:
            self.stopped, self._pending = True, ""
            return text[: min(matches)]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._pending = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    max_length = min(len(text), len(stop) - 1)
    return next((n for n in range(max_length, 0, -1) if text.endswith(stop[:n])), 0)


FinishReason = Literal["stop", "length"]


@summary_repr
class Completion(NamedTuple):
    """The output for a prompt: new ids (without the eos token), their text (without the stop string; empty if the model
    has no tokenizer), the log probability of each id, the finish reason, and the speed.
    """

    ids: list[int]
    text: str
    logprobs: list[float]  # log probability of each id, in nats, before temperature and penalties
    finish_reason: FinishReason
    tokens_per_second: float  # for this sequence, including prefill

    def card(self) -> SummaryCard:
        """The text, or the ids if there is no codec."""
        facts = {"tokens": len(self.ids), "ended by": self.finish_reason, "tokens per second": self.tokens_per_second}
        return SummaryCard("Completion", {"text": repr(self.text) if self.text else self.ids, **facts})


@dataclass(slots=True)
class Event:
    """One step for one sequence: the sampler makes it, and each layer up to the client adds its part.

    `id` is None if the sequence ended without a new token. A sequence's last event has a `reason`, and its `completion`
    if a Session generates it.
    """

    sequence: int = 0  # the index of the prompt in a Session, or of the sample in a request
    id: int | None = None
    text: str = ""  # final text; it never ends inside a character or contains part of a stop string
    completion: Completion | None = None
    logprob: float = 0.0  # of the token, in nats, before temperature and penalties
    top: Sequence[tuple[int, float]] = ()  # the most probable tokens with theirs, in decreasing order
    reason: FinishReason | Literal["tool_calls"] | None = None
    error: UserError | None = None  # why the sequence ended, if the model output NaN or its rule failed
    ticket: int = 0  # of the request
    cached_tokens: int = 0  # prompt tokens that were cached every time this sequence started
    scores: Sequence[TokenScore] = ()  # for the prompt's tokens, starting with the second; only in the first event
    calls: Sequence[Any] = ()  # the parts of tool calls that the server finds in the text


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
    ) -> None:
        """`prompt_top` is how many of the most probable tokens to report per prompt token; None means the prompt is not
        scored. If `generates` is False, the sample ends with its prompt.
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
        self._stop_ids, self._text = limits.all_stop_ids(codec), TextStream(codec, prompt, limits.stop)

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
            event.id = None
            self.finish(event, "stop")
            return
        self.ids.append(event.id)
        event.text = self._text.push(event.id)
        if self._text.stopped or self.generated == self.limit:
            self.finish(event, "length")

    def finish(self, event: Event, reason: FinishReason) -> None:
        """End the sequence with this event, which gets the text that was held back."""
        event.text += self._text.finish()
        event.reason = "stop" if self._text.stopped else reason
        self.done = True
