"""/v1/completions: continuations of text and of token ids."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from headway.app.model import Model
from headway.codecs import TokenizerCodec
from headway.generate import Event
from headway.generate.scheduler import Request
from headway.generate.score import TokenScore
from headway.serve.bodies import (
    CompletionAnswer,
    CompletionBody,
    CompletionChoice,
    FinishReason,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
)
from headway.serve.generation import (
    GenerationJob,
    TokenFormatter,
    check_body,
    limits_of,
    num_samples,
    prompt_top,
    remaining_context,
    restricted_rule,
    rule_of,
    sampling_of,
    stream_events,
    text_codec,
    token_usage,
    truncate_prompt,
)
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, Events

_DEFAULT_MAX_TOKENS = 16  # default of max_tokens in the OpenAI API
_DECODER_CONTEXT = 8  # prompt tokens that determine how the first new one is decoded


@dataclass
class _Completion:
    """A continuation so far."""

    text: str = ""
    logprobs: TextLogprobs | None = None
    reason: FinishReason | None = None
    scores: Sequence[TokenScore] = ()
    ids: list[int] = field(default_factory=list)


async def create_completion(body: CompletionBody, context: Context) -> CompletionAnswer | Events:
    """The continuations of each prompt, complete or streamed."""
    check_body(body)
    if body.stream:
        return Events(_stream_answers(body, context))
    completions: defaultdict[int, _Completion] = defaultdict(_Completion)
    async with prepare(body, context) as job, aclosing(stream_events(job, context)) as stream:
        builder = _ChoiceBuilder(body, job)
        async for event in stream:
            completion = completions[event.sequence]
            completion.scores = completion.scores or event.scores
            new_text, logprobs = await builder.format_event(event)
            completion.text += new_text
            completion.logprobs = _append_logprobs(completion.logprobs, logprobs)
            completion.ids += [] if event.id is None else [event.id]
            completion.reason = event.reason
        build_choices = lambda: [builder.choice(index, completion) for index, completion in sorted(completions.items())]  # noqa: E731
        choices = build_choices() if body.prompt_logprobs is None else await asyncio.to_thread(build_choices)
        name, fingerprint = job.ready.name, job.ready.fingerprint
        return CompletionAnswer(
            f"cmpl-{context.id}", int(time.time()), name, fingerprint, choices, token_usage(context)
        )


async def _stream_answers(body: CompletionBody, context: Context) -> AsyncGenerator[CompletionAnswer, None]:
    options = body.stream_options
    include_usage = options is not None and options.include_usage
    every_event = include_usage and options is not None and options.continuous_usage_stats
    created, started = int(time.time()), set[int]()
    async with prepare(body, context) as job, aclosing(stream_events(job, context)) as stream:
        name, fingerprint, usage = job.ready.name, job.ready.fingerprint, None if include_usage else UNSET
        builder = _ChoiceBuilder(body, job)
        # One struct for all events: each is written out before the next is made.
        answer = CompletionAnswer(f"cmpl-{context.id}", created, name, fingerprint, [], usage)
        async for event in stream:
            index, reason = event.sequence, event.reason
            text, logprobs = await builder.format_event(event)
            if not text and logprobs is None and reason is None and not body.return_token_ids:
                continue
            choice = CompletionChoice(index, text, logprobs, reason)
            if body.return_token_ids:
                choice.token_ids = [] if event.id is None else [event.id]
                if index not in started:
                    choice.prompt_token_ids = list(job.request(index).prompt)
            started.add(index)
            answer.choices = [choice]
            answer.usage = token_usage(context) if every_event else usage
            yield answer
        if include_usage:
            answer.choices, answer.usage = [], token_usage(context)
            yield answer


class _ChoiceBuilder:
    """Text and log probabilities of events; if the prompt is echoed, it precedes the first event of each sequence."""

    def __init__(self, body: CompletionBody, job: GenerationJob) -> None:
        self._body, self._job = body, job
        self._codec = text_codec(job.ready.model)
        self._formatter = TokenFormatter.of(job.ready.model)
        self._started, self._offsets = set[int](), dict[int, _Offsets]()
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        has_texts = body.truncate_prompt_tokens is None and isinstance(prompts[0], str)
        self._prompt_texts = prompts if has_texts else []

    async def format_event(self, event: Event) -> tuple[str, TextLogprobs | None]:
        """The text and log probabilities that an event adds. Those for a prompt, which may be long, are computed in a
        thread.
        """
        index, prompt = event.sequence, ("", None)
        if index not in self._started:
            self._started.add(index)
            prompt = await asyncio.to_thread(self._start, event) if self._body.echo else self._start(event)
        token = self._job.token_logprob(event)
        if token is None or event.id is None:
            return prompt[0] + event.text, prompt[1]
        logprobs = _logprobs(token, self._offsets[index].next(event.id))
        return prompt[0] + event.text, _append_logprobs(prompt[1], logprobs)

    def _start(self, event: Event) -> tuple[str, TextLogprobs | None]:
        """The text and log probabilities before the first event of a sequence."""
        request, echoes = self._job.request(event.sequence), self._body.echo
        offsets = self._offsets[event.sequence] = _Offsets(self._codec, () if echoes else request.prompt)
        if not echoes:
            return "", None
        request_index = self._job.requests.index(request)
        text = str(self._prompt_texts[request_index]) if self._prompt_texts else self._codec.decode(request.prompt)
        if not self._job.with_logprobs:
            return text, None
        by_id, first_id = self._job.by_id, request.prompt[0]
        logprobs = TextLogprobs(
            [_token_name(self._formatter.token_logprob(first_id, 0.0, [], by_id))],
            [None],
            [None],
            [offsets.next(first_id)],
        )
        for score in event.scores:
            token = self._formatter.token_logprob(score.id, score.logprob, score.top[: self._body.logprobs], by_id)
            _append_logprobs(logprobs, _logprobs(token, offsets.next(score.id)))
        return text, logprobs

    def choice(self, index: int, completion: _Completion) -> CompletionChoice:
        """The complete sequence as a choice."""
        choice = CompletionChoice(index, completion.text, completion.logprobs, completion.reason, None, None, None)
        if self._body.prompt_logprobs is not None:
            choice.prompt_logprobs = self._formatter.prompt_logprobs(completion.scores, self._body.prompt_logprobs)
        if self._body.return_token_ids:
            choice.prompt_token_ids, choice.token_ids = list(self._job.request(index).prompt), completion.ids
        return choice


class _Offsets:
    """The text offset of each token of a sequence."""

    def __init__(self, codec: TokenizerCodec, prompt: Sequence[int]) -> None:
        self._decoder, self._length = codec.stream(), 0
        for id in prompt[-_DECODER_CONTEXT:]:
            self._decoder.push(id)

    def next(self, id: int) -> int:
        start = self._length
        self._length += len(self._decoder.push(id))
        return start


def _append_logprobs(before: TextLogprobs | None, after: TextLogprobs | None) -> TextLogprobs | None:
    if before is None or after is None:
        return before or after
    before.tokens += after.tokens
    before.token_logprobs += after.token_logprobs
    before.top_logprobs += after.top_logprobs
    before.text_offset += after.text_offset
    return before


def _logprobs(token: TokenLogprob, offset: int) -> TextLogprobs:
    name = _token_name(token)
    top = {name: token.logprob}
    for top_token in token.top_logprobs:
        top.setdefault(_token_name(top_token), top_token.logprob)
    return TextLogprobs([name], [token.logprob], [top], [offset])


def _token_name(token: TopLogprob) -> str:
    """A token's text, or its bytes if they are part of a character, as in the OpenAI API."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes) if "\ufffd" in token.token else token.token


@asynccontextmanager
async def prepare(body: CompletionBody, context: Context) -> AsyncIterator[GenerationJob]:
    """The checked request. StatusError 400 if it does not fit the model."""
    generates = body.max_tokens != 0
    if not generates and not body.echo and body.prompt_logprobs is None:
        raise StatusError(400, "max_tokens is 0 without echo, which returns nothing; set echo to true", "max_tokens")
    async with context.served.using(body.model) as ready:
        model = ready.model
        is_batch = isinstance(body.prompt, list) and not all(isinstance(entry, int) for entry in body.prompt)
        num_prompts = len(body.prompt) if is_batch else 1
        n = num_samples(body, num_prompts, context)
        sampling = sampling_of(body, model.module.config.vocab_size)
        limits = limits_of(body, model, context)
        format_rule = await rule_of(body, model, limits.stop_ids)
        context.headers |= {} if format_rule is None else format_rule.headers
        rule = restricted_rule(format_rule, body, model, limits)
        max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
        top, requests = body.logprobs if generates else 0, []
        for ids in await asyncio.to_thread(_prompts, body, model):
            ids = truncate_prompt(ids, body, model, max_tokens)
            remaining = remaining_context(ids, model, "prompt", generates)
            prompt_limits = replace(
                limits, max_new_tokens=max_tokens if remaining is None else max(1, min(max_tokens, remaining))
            )
            requests.append(
                Request(ids, sampling, prompt_limits, n, rule, top or 0, context.owner, prompt_top(body), generates)
            )
        yield GenerationJob(ready, requests, body.logprobs is not None, by_id=body.return_tokens_as_token_ids)


def _prompts(body: CompletionBody, model: Model) -> list[list[int]]:
    """The ids of each prompt. StatusError 400 without a prompt, and for a mix of strings and ids."""
    prompt = body.prompt
    encode = model.prompt_ids if body.add_special_tokens else text_codec(model).encode
    if isinstance(prompt, str):
        return [encode(prompt)]
    ids = [entry for entry in prompt if isinstance(entry, int)]
    strings = [entry for entry in prompt if isinstance(entry, str)]
    lists = [entry for entry in prompt if isinstance(entry, list)]
    if not prompt or len(prompt) not in (len(ids), len(strings), len(lists)):
        problem = "mixes strings and ids" if prompt else "is an empty list"
        raise StatusError(400, f"prompt {problem}; send a string, strings, ids, or lists of ids", "prompt")
    return [ids] if ids else lists or [encode(text) for text in strings]


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        create_completion,
        "continuations of text or token ids",
        CompletionBody,
        CompletionAnswer,
        CompletionAnswer,
    ),
)
