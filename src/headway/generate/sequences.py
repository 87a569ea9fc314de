"""When a sequence ends, its text, and the events that report its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from headway.codecs import Codec
from headway.errors import ConfigError, UserError
from headway.io.arguments import check_fields, format_value
from headway.io.summary_card import SummaryCard, summary_repr

if TYPE_CHECKING:
    from headway.generate.score import TokenScore

Ids = Sequence[int]
BEFORE, THINKING, ANSWER = "before", "thinking", "answer"  # states of an answer
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


class AnswerReader(Protocol):
    """Separates the parts of one answer. After each `push`, `reasoning` has the new part of the thinking, `recipient`
    the tool that the new text is for ("" for the user), and `pending` the text that is held back.
    """

    state: str  # BEFORE anything is decided, THINKING or ANSWER
    reasoning: str
    recipient: str
    pending: str

    def push(self, text: str, token: int | None = None, last: bool = False) -> str:
        """The new text of the answer after a token and the text that it completed; with `last`, nothing is held
        back.
        """
        ...


def partial_match_length(text: str, tag: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


class TextStream:
    """Decodes the text after a prompt as its tokens arrive; the text never contains a stop string.

    Text that may be the start of a stop string is held back until it turns out not to be.
    """

    def __init__(
        self, codec: Codec | None, prompt: Sequence[int], stop: tuple[str, ...], reader: AnswerReader | None = None
    ) -> None:
        """Without a codec there is no text, and stop strings cannot be found. With a `reader`, only the answer is
        searched for them.
        """
        if codec is None and stop:
            raise UserError(f"stop string {stop[0]!r} needs text, but there is no tokenizer; use stop_ids instead")
        self._decoder = None if codec is None else codec.stream()
        self._reader = reader
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
        if self._reader is not None:
            new_text = self._reader.push(new_text, token)
            if self._reader.recipient:
                return new_text
        return self._release(new_text) if self._stop else new_text

    def finish(self) -> str:
        """The text that was still held back."""
        if self._decoder is None or self.stopped:
            return ""
        text = self._decoder.flush()
        text = self._release(text if self._reader is None else self._reader.push(text, last=True))
        pending, self._pending = self._pending, ""
        return text if self.stopped else text + pending

    def _release(self, new_text: str) -> str:
        text = self._pending + new_text
        matches = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if matches:
            self.stopped, self._pending = True, ""
            return text[: min(matches)]
        held = max((partial_match_length(text, stop) for stop in self._stop), default=0)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]


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
    reasoning: str = ""  # final text of the thinking, which is not part of `text`
    thinking: bool = False  # whether its token is part of the thinking
    recipient: str = ""  # the tool that the text is for, in models that address their messages
    end: tuple[int, float] | None = None  # the stop id that ended the sequence, and its log probability
