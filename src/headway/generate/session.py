"""Batched generation: takes prompts of different lengths; each sequence ends on its own and returns its text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from headway.codecs import Codec
from headway.errors import UserError
from headway.generate.prompts import (
    Source,
    check_images,
    check_prompts,
    check_sources,
    context_of,
    device_of,
    make_prompt,
)
from headway.generate.sampling import Rule, Sampling, row_keys
from headway.generate.scheduler import Request, Scheduler
from headway.generate.sequences import AnswerReader, Completion, Event, FinishReason, Ids, Limits, TextStream
from headway.generate.speculation import TimedGuessLength
from headway.generate.stepper import RowBatch, stepper_of
from headway.nn.models import CaptionerConfig, EncoderDecoderConfig, Generative, evaluation_mode

_SAMPLING, _LIMITS = Sampling(), Limits()
_UNLIMITED = 1 << 30  # prompt tokens per step


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
        rule: Callable[[], Rule] | None = None,
        reader: Callable[[], AnswerReader] | None = None,
    ) -> Iterator[Event]:
        """Yield the steps of all sequences as they happen. Raises UserError here, before the first one.

        `rule` makes the constraint on the tokens of each sequence, `reader` what separates thinking from its answer.
        """
        check_prompts(self.model, prompts)
        sampling.check_vocab_size(self.model.config.vocab_size)
        if sources is not None:
            if isinstance(self.model.config, CaptionerConfig):
                check_images(self.model, sources)
            else:
                check_sources(self.model, cast(Sequence[Ids], sources))
            if len(sources) != len(prompts):
                raise UserError(
                    f"{len(sources)} sources do not match {len(prompts)} prompts; pass one source per prompt"
                )
            if not all(len(source) for source in sources):
                raise UserError("a source has 0 tokens; remove it")
        elif isinstance(self.model.config, (EncoderDecoderConfig, CaptionerConfig)):
            raise UserError("this model needs a source; pass one per prompt")
        TextStream(self.codec, (), limits.stop)  # raises for stop strings without a codec
        requests = [Request(prompt, sampling, limits, rule=rule, reader=reader) for prompt in prompts]
        return self._events(requests, limits, sources)

    def _events(self, requests: Sequence[Request], limits: Limits, sources: Sequence[Source] | None) -> Iterator[Event]:
        prompts = [request.prompt for request in requests]
        stepper, context, device = stepper_of(self.model), context_of(self.model), device_of(self.model)
        guess_length = TimedGuessLength if len(prompts) == 1 else None
        scheduler = Scheduler(
            stepper, self.codec, self.rows, len(prompts) + 1, step_tokens=_UNLIMITED, shared=False,
            guess_length=guess_length, draft=self.draft,
        )  # fmt: skip
        keys = row_keys(prompts, sources)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # similar lengths need little padding
        sequences: dict[int, int] = {}  # by ticket
        for start in range(0, len(order), self.rows):
            chosen, batch = order[start : start + self.rows], None
            if sources is not None or not stepper.joins:
                lengths = [len(prompts[i]) for i in chosen]
                new = limits.max_new_tokens
                capacity = max(n + (new if context is None else min(new, context - n)) for n in lengths)
                chosen_sources = None if sources is None else [sources[i] for i in chosen]
                prompt = make_prompt([prompts[i] for i in chosen], chosen_sources, device)
                batch = RowBatch(len(chosen), capacity, prompt.source, prompt.source_layout)
            for i in chosen:
                ticket = scheduler.submit(requests[i], [keys[i]], batch)
                sequences[ticket] = i
        parts: dict[int, list[Event]] = {i: [] for i in order}
        started: dict[int, float] = {}
        with evaluation_mode(self.model):
            while sequences:
                before = time.perf_counter()
                for event in scheduler.step():
                    if event.error is not None:
                        raise event.error
                    event.sequence = i = sequences[event.ticket]
                    started.setdefault(i, before)
                    parts[i].append(event)
                    if event.reason is not None:
                        del sequences[event.ticket]
                        seconds = max(time.perf_counter() - started[i], 1e-9)
                        tokens = [(part.id, part.logprob) for part in parts[i] if part.id is not None]
                        event.completion = Completion(
                            [token for token, _ in tokens],
                            "".join(part.text for part in parts.pop(i)),
                            [logprob for _, logprob in tokens],
                            cast(FinishReason, event.reason),
                            len(tokens) / seconds,
                        )
                    yield event
