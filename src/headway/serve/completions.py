"""/v1/completions: continuations of texts and of tokens."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from headway.app.model import Model
from headway.generate.scheduler import Request
from headway.serve.bodies import CompletionAnswer, CompletionBody, CompletionChoice, Finish, TextLogprobs, ToldToken
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint, Events
from headway.serve.generating import (
    Prepared,
    copies_of,
    limits_of,
    passages,
    room_for,
    rule_of,
    sampling_of,
    used,
)

_TOKENS = 16  # that are written where max_tokens says nothing, as the OpenAI API has it


@dataclass
class _Text:
    """A continuation so far."""

    text: str = ""
    tokens: list[ToldToken] = field(default_factory=list)
    reason: Finish | None = None


async def completed(body: CompletionBody, context: Context) -> CompletionAnswer | Events:
    """The continuations of each prompt, whole or in parts."""
    if body.stream:
        return Events(_parts(body, context))
    texts: defaultdict[int, _Text] = defaultdict(_Text)
    async with _prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        async for passage in found:
            text = texts[passage.place]
            text.text += passage.text
            text.tokens += [] if passage.token is None else [passage.token]
            text.reason = passage.reason
        choices = [
            CompletionChoice(place, text.text, _logprobs(text.tokens, 0) if asked.told else None, text.reason)
            for place, text in sorted(texts.items())
        ]
        name, mark = asked.ready.name, asked.ready.fingerprint
        return CompletionAnswer(f"cmpl-{context.id}", int(time.time()), name, mark, choices, used(context))


async def _parts(body: CompletionBody, context: Context) -> AsyncGenerator[CompletionAnswer, None]:
    counted = body.stream_options is not None and body.stream_options.include_usage
    offsets: defaultdict[int, int] = defaultdict(int)
    created = int(time.time())
    async with _prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        name, mark, usage = asked.ready.name, asked.ready.fingerprint, None if counted else UNSET
        # One struct for all events: each is written out before the next is made.
        answer = CompletionAnswer(f"cmpl-{context.id}", created, name, mark, [], usage)
        async for place, text, _, token, reason in found:
            if not text and token is None and reason is None:
                continue
            told = None if token is None else _logprobs([token], offsets[place])
            offsets[place] += 0 if token is None else len(token.token)
            answer.choices = [CompletionChoice(place, text, told, reason)]
            yield answer
        if counted:
            answer.choices, answer.usage = [], used(context)
            yield answer


def _logprobs(tokens: list[ToldToken], offset: int) -> TextLogprobs:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        [token.token for token in tokens],
        [token.logprob for token in tokens],
        [{other.token: other.logprob for other in reversed(token.top_logprobs)} for token in tokens],
        offsets,
    )


@asynccontextmanager
async def _prepared(body: CompletionBody, context: Context) -> AsyncIterator[Prepared]:
    """What is asked, checked. StatusError 400 for what does not fit the model."""
    async with context.served.using(body.model) as ready:
        model = ready.model
        count = len(body.prompt) if _is_many(body) else 1
        copies = copies_of(body, count, context)
        sampling = sampling_of(body, model.module.config.symbols)
        limits = limits_of(body, model, context)
        rule = await rule_of(body, model, limits.stop_ids)
        context.headers |= {} if rule is None else rule.headers
        requests = []
        for ids in await asyncio.to_thread(_prompts, body, model):
            room = room_for(ids, model, "prompt")
            most = body.max_tokens or _TOKENS
            ends = replace(limits, max_new_tokens=most if room is None else min(most, room))
            requests.append(Request(ids, sampling, ends, copies, rule, body.logprobs or 0, context.owner))
        yield Prepared(ready, requests, body.logprobs is not None)


def _is_many(body: CompletionBody) -> bool:
    """Whether the prompt is several."""
    return isinstance(body.prompt, list) and not all(isinstance(each, int) for each in body.prompt)


def _prompts(body: CompletionBody, model: Model) -> list[list[int]]:
    """The ids of each prompt. StatusError 400 for none, and for texts and ids side by side."""
    given = body.prompt
    if isinstance(given, str):
        return [model.prompt_ids(given)]
    ids = [each for each in given if isinstance(each, int)]
    texts = [each for each in given if isinstance(each, str)]
    lists = [each for each in given if isinstance(each, list)]
    if not given or len(given) not in (len(ids), len(texts), len(lists)):
        what = "mixes texts and tokens" if given else "is an empty list"
        raise StatusError(400, f"prompt {what}; give a text, texts, ids, or lists of ids", "prompt")
    return [ids] if ids else lists or [model.prompt_ids(text) for text in texts]


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        completed,
        "continuations of a text, of several, or of tokens",
        CompletionBody,
        CompletionAnswer,
        CompletionAnswer,
    ),
)
