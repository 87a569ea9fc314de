"""Batched generation: takes prompts of different lengths; each sequence ends on its own and returns its text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch

from headway.arguments import check_fields, format_value
from headway.codecs import Codec
from headway.errors import ConfigError, UserError
from headway.generate.prompts import (
    Ids,
    Source,
    check_images,
    check_not_nan,
    check_prompts,
    check_sources,
    context_of,
    device_of,
    evaluation_mode,
    make_prompt,
)
from headway.generate.sampling import Sampler, Sampling, row_keys
from headway.generate.score import TokenScore
from headway.generate.speculation import Draft, ExtendingModel, Lookup, Speculation
from headway.nn.models import CaptionerConfig, EncoderDecoderConfig, Generative
from headway.summary_card import SummaryCard, summary_repr

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


class Continuation:
    """The continuation of a prompt, token by token: its ids without the eos token, its text, and its end."""

    def __init__(self, codec: Codec | None, prompt: Ids, limits: Limits, context: int | None) -> None:
        self.limit = limits.max_new_tokens if context is None else min(limits.max_new_tokens, context - len(prompt))
        self.ids: list[int] = []
        self._stop_ids, self._stream = limits.all_stop_ids(codec), TextStream(codec, prompt, limits.stop)

    def push(self, token: int) -> tuple[int | None, str, FinishReason | None]:
        """The token (unless it ends the sequence), the text that is now final, and, at the end, the finish reason."""
        if token in self._stop_ids:
            return None, *self.finish("", "stop")
        self.ids.append(token)
        text = self._stream.push(token)
        if self._stream.stopped or len(self.ids) == self.limit:
            return token, *self.finish(text, "length")
        return token, text, None

    def finish(self, text: str, reason: FinishReason) -> tuple[str, FinishReason]:
        """The text, including the part that was held back, and the finish reason."""
        text += self._stream.finish()
        return text, "stop" if self._stream.stopped else reason


_SAMPLING, _LIMITS = Sampling(), Limits()
_COMPACT_SHARE = 0.25  # share of a batch that must have finished before its rows are removed


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
    top: list[tuple[int, float]] = field(default_factory=list)  # the most probable tokens with theirs, decreasing
    reason: FinishReason | Literal["tool_calls"] | None = None
    error: UserError | None = None  # why the sequence ended, if the model output NaN or its rule failed
    ticket: int = 0  # of the request
    cached_tokens: int = 0  # prompt tokens that were cached every time this sequence started
    scores: Sequence[TokenScore] = ()  # for the prompt's tokens, starting with the second; only in the first event
    calls: Sequence[Any] = ()  # the parts of tool calls that the server finds in the text


class Session:
    """Generates continuations for prompts of any length with one model.

    Finished sequences leave the batch. With a codec, completions have text and end at its eos token.
    """

    def __init__(
        self, model: Generative, codec: Codec | None = None, rows: int = 64, draft: Generative | None = None
    ) -> None:
        """`rows` is the maximum number of sequences in a batch. `draft` is a small model with the same vocabulary that
        guesses the model's tokens while only one sequence runs; it changes the speed, not the output.
        """
        if rows < 1:
            raise UserError(f"rows is {rows}; use an integer of at least 1")
        if draft is not None and not getattr(model, "extends", False):
            raise UserError(
                "a draft model needs the compiled engine, which runs on a CPU, and a model that uses only attention; "
                "remove the draft"
            )
        self.model = model
        self.codec = codec
        self.rows = rows
        self.draft = draft

    def generate(
        self,
        prompts: Sequence[Ids],
        sampling: Sampling = _SAMPLING,
        limits: Limits = _LIMITS,
        sources: Sequence[Source] | None = None,
    ) -> list[Completion]:
        """A completion for each prompt. `sources` are the encoder's inputs or a captioner's images, one per prompt."""
        done = {e.sequence: e.completion for e in self.events(prompts, sampling, limits, sources) if e.completion}
        return [done[i] for i in range(len(prompts))]

    def stream(
        self, prompt: Ids, sampling: Sampling = _SAMPLING, limits: Limits = _LIMITS, source: Source | None = None
    ) -> Iterator[str]:
        """Yield the text of one sequence in parts, each as soon as it is final."""
        events = self.events([prompt], sampling, limits, None if source is None else [source])
        return (event.text for event in events if event.text)

    def events(
        self,
        prompts: Sequence[Ids],
        sampling: Sampling = _SAMPLING,
        limits: Limits = _LIMITS,
        sources: Sequence[Source] | None = None,
    ) -> Iterator[Event]:
        """Yield the steps of all sequences as they happen. Raises UserError here, before the first one."""
        context = context_of(self.model)
        check_prompts(self.model, prompts)
        sampling.check_vocab_size(self.model.config.vocab_size)
        self._check_sources(prompts, sources)
        rows = [_Row(n, prompt, Continuation(self.codec, prompt, limits, context)) for n, prompt in enumerate(prompts)]
        return self._events(rows, sampling, sources)

    def _check_sources(self, prompts: Sequence[Ids], sources: Sequence[Source] | None) -> None:
        if sources is None:
            if isinstance(self.model.config, (EncoderDecoderConfig, CaptionerConfig)):
                raise UserError("this model needs a source; pass one per prompt")
            return
        if isinstance(self.model.config, CaptionerConfig):
            check_images(self.model, sources)
        else:
            check_sources(self.model, cast(Sequence[Ids], sources))
        if len(sources) != len(prompts):
            raise UserError(f"{len(sources)} sources do not match {len(prompts)} prompts; pass one source per prompt")
        if not all(len(source) for source in sources):
            raise UserError("a source has 0 tokens; remove it")

    @torch.inference_mode()
    def _events(self, rows: list[_Row], sampling: Sampling, sources: Sequence[Source] | None) -> Iterator[Event]:
        prompts = [row.prompt for row in rows]
        keys = row_keys(prompts, sources)
        order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))  # similar lengths need little padding
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            batch = _Batch(
                [rows[i] for i in chosen],
                [keys[i] for i in chosen],
                None if sources is None else [sources[i] for i in chosen],
            )
            with evaluation_mode(self.model), evaluation_mode(self.draft or self.model):
                yield from batch.run(self.model, sampling, self.draft)


@dataclass
class _Row:
    """A running sequence."""

    sequence: int
    prompt: Ids
    output: Continuation
    logprobs: list[float] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    done: bool = False

    def push(self, token: int, logprob: float, started: float) -> Event:
        """Add the next token and return the event."""
        check_not_nan(logprob)
        new, text, reason = self.output.push(token)
        self.chunks.append(text)
        if new is not None:
            self.logprobs.append(logprob)
        event = Event(self.sequence, new, text, logprob=logprob, reason=reason)
        if reason is not None:
            self.done = True
            rate = len(self.output.ids) / max(time.perf_counter() - started, 1e-9)
            event.completion = Completion(self.output.ids, "".join(self.chunks), self.logprobs, reason, rate)
        return event


class _Batch:
    """Sequences that run as one batch."""

    def __init__(self, rows: list[_Row], keys: list[int], sources: list[Source] | None) -> None:
        self.rows, self.keys, self.sources = rows, keys, sources

    def run(self, model: Generative, sampling: Sampling, draft: Generative | None) -> Iterator[Event]:
        started = time.perf_counter()
        device = device_of(model)
        prompts = [row.prompt for row in self.rows]
        prompt = make_prompt(prompts, self.sources, device)
        logits, decoding = model.start(prompt, max(len(row.prompt) + row.output.limit for row in self.rows))
        pool = getattr(model, "pool", None)  # the engine's threads, if any, also sample
        sampler = Sampler(sampling, self.keys, prompts, logits.shape[-1], device, pool)
        step, finished, idle = 0, 0, None
        advance = model.step
        if len(self.rows) == 1 and getattr(model, "extends", False):
            [only] = self.rows
            guesser = Lookup(only.prompt)
            if draft is not None:
                guesser = Draft(draft, only.prompt, sampler, logits.shape[-1], only.output.limit)
            advance = Speculation(cast(ExtendingModel, model), guesser, only.output.limit).step
        while True:
            chosen, logprobs = sampler.pick(logits, step)
            pairs = torch.stack([chosen.double(), logprobs.double()])  # one transfer; a double holds any id exactly
            for row, token, logprob in zip(self.rows, *pairs.tolist()):
                if not row.done:
                    yield row.push(int(token), logprob, started)
            now = sum(row.done for row in self.rows)
            if now == len(self.rows):
                return
            if now >= _COMPACT_SHARE * len(self.rows):
                remaining = [i for i, row in enumerate(self.rows) if not row.done]
                self.rows = [self.rows[i] for i in remaining]
                index = torch.tensor(remaining, device=chosen.device)
                sampler.select(index)
                chosen, decoding = chosen[index], decoding.select(index, index)
                idle, finished = None, 0
            elif now > finished:
                idle, finished = torch.tensor([row.done for row in self.rows], device=device), now
            if idle is not None:
                # A finished row is padding until it is removed: nothing is written, and its positions stay in range.
                decoding = decoding.at(decoding.positions.masked_fill(idle, -1))
            logits, decoding = advance(chosen, decoding)
            step += 1
