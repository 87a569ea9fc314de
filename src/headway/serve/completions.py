"""/v1/completions: continuations of texts and of token ids."""

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
from headway.generate.scheduler import Request
from headway.serve.bodies import (
    CompletionAnswer,
    CompletionBody,
    CompletionChoice,
    Finish,
    LikelyToken,
    TextLogprobs,
    ToldToken,
)
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint, Events
from headway.serve.generating import (
    Passage,
    Prepared,
    Spelling,
    check_body,
    copies_of,
    limits_of,
    narrowed_rule,
    passages,
    prompt_top,
    room_for,
    rule_of,
    sampling_of,
    text_codec,
    truncated,
    used,
)

_TOKENS = 16  # default of max_tokens in the OpenAI API
_PRIMING = 8  # tokens of a prompt that determine how the first new one is decoded


@dataclass
class _Text:
    """A continuation so far."""

    text: str = ""
    logprobs: TextLogprobs | None = None
    reason: Finish | None = None
    first: Passage | None = None
    ids: list[int] = field(default_factory=list)


async def completed(body: CompletionBody, context: Context) -> CompletionAnswer | Events:
    """The continuations of each prompt, complete or streamed."""
    check_body(body)
    if body.stream:
        return Events(_parts(body, context))
    texts: defaultdict[int, _Text] = defaultdict(_Text)
    async with prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        told = _Told(body, asked)
        async for passage in found:
            text = texts[passage.place]
            text.first = text.first or passage
            written, logprobs = await told.of(passage)
            text.text += written
            text.logprobs = _joined(text.logprobs, logprobs)
            text.ids += [] if passage.id is None else [passage.id]
            text.reason = passage.reason
        whole = lambda: [told.choice(place, text) for place, text in sorted(texts.items())]  # noqa: E731
        choices = whole() if body.prompt_logprobs is None else await asyncio.to_thread(whole)
        name, mark = asked.ready.name, asked.ready.fingerprint
        return CompletionAnswer(f"cmpl-{context.id}", int(time.time()), name, mark, choices, used(context))


async def _parts(body: CompletionBody, context: Context) -> AsyncGenerator[CompletionAnswer, None]:
    options = body.stream_options
    counted = options is not None and options.include_usage
    always = counted and options is not None and options.continuous_usage_stats
    created, begun = int(time.time()), set[int]()
    async with prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        name, mark, usage = asked.ready.name, asked.ready.fingerprint, None if counted else UNSET
        told = _Told(body, asked)
        # One struct for all events: each is written out before the next is made.
        answer = CompletionAnswer(f"cmpl-{context.id}", created, name, mark, [], usage)
        async for passage in found:
            place, reason = passage.place, passage.reason
            text, logprobs = await told.of(passage)
            if not text and logprobs is None and reason is None and not body.return_token_ids:
                continue
            choice = CompletionChoice(place, text, logprobs, reason)
            if body.return_token_ids:
                choice.token_ids = [] if passage.id is None else [passage.id]
                if place not in begun:
                    choice.prompt_token_ids = list(asked.request(place).prompt)
            begun.add(place)
            answer.choices = [choice]
            answer.usage = used(context) if always else usage
            yield answer
        if counted:
            answer.choices, answer.usage = [], used(context)
            yield answer


class _Told:
    """Text and log probabilities of deltas; if the prompt is echoed, it precedes the first delta of each sequence."""

    def __init__(self, body: CompletionBody, asked: Prepared) -> None:
        self._body, self._asked = body, asked
        self._codec = text_codec(asked.ready.model)
        self._spell = Spelling.of(asked.ready.model)
        self._begun, self._offsets = set[int](), dict[int, _Offsets]()
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        kept = body.truncate_prompt_tokens is None and isinstance(texts[0], str)
        self._given = texts if kept else []

    async def of(self, passage: Passage) -> tuple[str, TextLogprobs | None]:
        """The text and the log probabilities that a delta adds. Those of a prompt, which may be long, are computed in a
        thread.
        """
        place, prompt = passage.place, ("", None)
        if place not in self._begun:
            self._begun.add(place)
            prompt = await asyncio.to_thread(self._begin, passage) if self._body.echo else self._begin(passage)
        if passage.token is None or passage.id is None:
            return prompt[0] + passage.text, prompt[1]
        logprobs = _logprobs(passage.token, self._offsets[place].next(passage.id))
        return prompt[0] + passage.text, _joined(prompt[1], logprobs)

    def _begin(self, passage: Passage) -> tuple[str, TextLogprobs | None]:
        """The text and log probabilities before the first delta of a sequence."""
        request, echoes = self._asked.request(passage.place), self._body.echo
        offsets = self._offsets[passage.place] = _Offsets(self._codec, () if echoes else request.prompt)
        if not echoes:
            return "", None
        number = self._asked.requests.index(request)
        text = str(self._given[number]) if self._given else self._codec.decode(request.prompt)
        return text, self._of_prompt(request, passage, offsets) if self._asked.told else None

    def _of_prompt(self, request: Request, passage: Passage, offsets: _Offsets) -> TextLogprobs:
        by_id, first = self._asked.by_id, request.prompt[0]
        found = TextLogprobs([_name(self._spell.told(first, 0.0, [], by_id))], [None], [None], [offsets.next(first)])
        for each in passage.scores:
            told = self._spell.told(each.id, each.logprob, each.top[: self._body.logprobs], by_id)
            _joined(found, _logprobs(told, offsets.next(each.id)))
        return found

    def choice(self, place: int, text: _Text) -> CompletionChoice:
        """The complete sequence as a choice."""
        choice = CompletionChoice(place, text.text, text.logprobs, text.reason, None, None, None)
        if self._body.prompt_logprobs is not None and text.first is not None:
            choice.prompt_logprobs = self._spell.scored(text.first.scores, self._body.prompt_logprobs)
        if self._body.return_token_ids:
            choice.prompt_token_ids, choice.token_ids = list(self._asked.request(place).prompt), text.ids
        return choice


class _Offsets:
    """The text offset of each token of a sequence."""

    def __init__(self, codec: TokenizerCodec, prompt: Sequence[int]) -> None:
        self._decoder, self._length = codec.stream(), 0
        for id in prompt[-_PRIMING:]:
            self._decoder.push(id)

    def next(self, id: int) -> int:
        begin = self._length
        self._length += len(self._decoder.push(id))
        return begin


def _joined(before: TextLogprobs | None, after: TextLogprobs | None) -> TextLogprobs | None:
    if before is None or after is None:
        return before or after
    before.tokens += after.tokens
    before.token_logprobs += after.token_logprobs
    before.top_logprobs += after.top_logprobs
    before.text_offset += after.text_offset
    return before


def _logprobs(token: ToldToken, offset: int) -> TextLogprobs:
    name = _name(token)
    top = {name: token.logprob}
    for other in token.top_logprobs:
        top.setdefault(_name(other), other.logprob)
    return TextLogprobs([name], [token.logprob], [top], [offset])


def _name(token: LikelyToken) -> str:
    """A token's text, or its bytes if they are part of a character, as in the OpenAI API."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes) if "\ufffd" in token.token else token.token


@asynccontextmanager
async def prepared(body: CompletionBody, context: Context) -> AsyncIterator[Prepared]:
    """The checked request. StatusError 400 if it does not fit the model."""
    generates = body.max_tokens != 0
    if not generates and not body.echo and body.prompt_logprobs is None:
        raise StatusError(400, "max_tokens is 0 without echo, which returns nothing; set echo to true", "max_tokens")
    async with context.served.using(body.model) as ready:
        model = ready.model
        count = len(body.prompt) if _is_many(body) else 1
        copies = copies_of(body, count, context)
        sampling = sampling_of(body, model.module.config.symbols)
        limits = limits_of(body, model, context)
        form = await rule_of(body, model, limits.stop_ids)
        context.headers |= {} if form is None else form.headers
        rule = narrowed_rule(form, body, model, limits)
        most = _TOKENS if body.max_tokens is None else max(1, body.max_tokens)
        top, requests = body.logprobs if generates else 0, []
        for ids in await asyncio.to_thread(_prompts, body, model):
            ids = truncated(ids, body, model, most)
            room = room_for(ids, model, "prompt", generates)
            ends = replace(limits, max_new_tokens=most if room is None else max(1, min(most, room)))
            requests.append(
                Request(ids, sampling, ends, copies, rule, top or 0, context.owner, prompt_top(body), generates)
            )
        yield Prepared(ready, requests, body.logprobs is not None, by_id=body.return_tokens_as_token_ids)


def _is_many(body: CompletionBody) -> bool:
    """Whether there are several prompts."""
    return isinstance(body.prompt, list) and not all(isinstance(each, int) for each in body.prompt)


def _prompts(body: CompletionBody, model: Model) -> list[list[int]]:
    """The ids of each prompt. StatusError 400 without a prompt, and for a mix of texts and ids."""
    given = body.prompt
    read = model.prompt_ids if body.add_special_tokens else text_codec(model).encode
    if isinstance(given, str):
        return [read(given)]
    ids = [each for each in given if isinstance(each, int)]
    texts = [each for each in given if isinstance(each, str)]
    lists = [each for each in given if isinstance(each, list)]
    if not given or len(given) not in (len(ids), len(texts), len(lists)):
        what = "mixes strings and ids" if given else "is an empty list"
        raise StatusError(400, f"prompt {what}; send a string, strings, ids, or lists of ids", "prompt")
    return [ids] if ids else lists or [read(text) for text in texts]


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        completed,
        "continuations of texts or token ids",
        CompletionBody,
        CompletionAnswer,
        CompletionAnswer,
    ),
)
