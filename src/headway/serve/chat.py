"""/v1/chat/completions: answers in a conversation, by the model's own chat template."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import UNSET

from headway.domains.chat.predictors import Talk
from headway.errors import UserError
from headway.generate.scheduler import Request
from headway.serve.bodies import (
    AnswerMessage,
    AnswerPart,
    CalledFunction,
    CalledFunctionPart,
    CalledTool,
    CalledToolPart,
    ChatAnswer,
    ChatAnswerPart,
    ChatBody,
    ChatChoice,
    ChatChoicePart,
    ChatLogprobs,
    ChatMessage,
    Finish,
    ToldToken,
)
from headway.serve.calls import Arguments, ToolCall
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint, Events, Ready
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
from headway.serve.tools import Toolbox, told

_UNLIMITED = 4096  # tokens of an answer, where neither the request nor the context says how many


@dataclass
class _Answer:
    """An answer so far."""

    content: str = ""
    calls: list[CalledTool] = field(default_factory=list)
    tokens: list[ToldToken] = field(default_factory=list)
    reason: Finish = "stop"

    def choice(self, place: int, told: bool) -> ChatChoice:
        content = None if self.calls and not self.content else self.content
        message = AnswerMessage(content, self.calls or UNSET)
        return ChatChoice(place, message, ChatLogprobs(self.tokens) if told else None, self.reason)


async def answered(body: ChatBody, context: Context) -> ChatAnswer | Events:
    """The answers to a conversation, whole or in parts."""
    if body.stream:
        return Events(_parts(body, context))
    answers: defaultdict[int, _Answer] = defaultdict(_Answer)
    async with _prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        async for passage in found:
            answer = answers[passage.place]
            answer.content += passage.text
            calls = [call for call in passage.calls if isinstance(call, ToolCall)]
            answer.calls += [CalledTool(id, CalledFunction(*function)) for id, *function in calls]
            answer.tokens += [] if passage.token is None else [passage.token]
            answer.reason = passage.reason or answer.reason
        choices = [answer.choice(place, asked.told) for place, answer in sorted(answers.items())]
        name, mark = asked.ready.name, asked.ready.fingerprint
        return ChatAnswer(f"chatcmpl-{context.id}", int(time.time()), name, mark, choices, used(context))


async def _parts(body: ChatBody, context: Context) -> AsyncGenerator[ChatAnswerPart, None]:
    counted = body.stream_options is not None and body.stream_options.include_usage
    created, begun, called = int(time.time()), set[int](), Counter[int]()
    async with _prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        name, mark, usage = asked.ready.name, asked.ready.fingerprint, None if counted else UNSET
        # One struct for all events: each is written out before the next is made.
        event = ChatAnswerPart(f"chatcmpl-{context.id}", created, name, mark, [], usage)
        async for place, text, calls, token, reason in found:
            if place not in begun:
                begun.add(place)
                event.choices = [ChatChoicePart(place, AnswerPart("assistant", ""))]
                yield event
            told = None if token is None else ChatLogprobs([token])
            deltas = [AnswerPart(content=text)] if text or (token is not None and not calls) else []
            for call in calls:
                called[place] += isinstance(call, ToolCall)
                deltas.append(AnswerPart(tool_calls=[_call_part(call, called[place] - 1)]))
            for delta in deltas:
                event.choices = [ChatChoicePart(place, delta, told)]
                told = None  # once
                yield event
            if reason is not None:
                event.choices = [ChatChoicePart(place, AnswerPart(), None, reason)]
                yield event
        if counted:
            event.choices, event.usage = [], used(context)
            yield event


def _call_part(call: ToolCall | Arguments, index: int) -> CalledToolPart:
    if isinstance(call, Arguments):
        return CalledToolPart(index, CalledFunctionPart(call.text))
    return CalledToolPart(index, CalledFunctionPart(call.arguments, call.name), call.id, "function")


@asynccontextmanager
async def _prepared(body: ChatBody, context: Context) -> AsyncIterator[Prepared]:
    """What is asked, checked. StatusError 400 for what does not fit the model; nothing is left out to make it fit."""
    if body.top_logprobs and not body.logprobs:
        raise StatusError(400, "top_logprobs needs logprobs; set it to true", "top_logprobs")
    messages = messages_of(body.messages)
    async with context.served.using(body.model) as ready:
        copies = copies_of(body, 1, context)
        sampling = sampling_of(body, ready.model.module.config.symbols)
        talk = talk_of(ready)
        limits = talk.turn(limits_of(body, ready.model, context))
        rule = await rule_of(body, ready.model, limits.stop_ids)
        tools = _tools(body, talk)
        if tools is not None and (calling := await asyncio.to_thread(tools.rule, limits.stop_ids)) is not None:
            if rule is not None:
                raise StatusError(400, "a call is required and response_format is set; leave one of them out", "tools")
            rule = calling
        context.headers |= {} if rule is None else rule.headers
        template = talk.template.given(body.chat_template_kwargs or {})
        end = opens(body.add_generation_prompt, body.continue_final_message), body.continue_final_message
        try:
            ids = await asyncio.to_thread(template.prompt, talk.codec, messages, tools and tools.told, *end)
        except UserError as error:  # clients need not know where the model lies
            line = str(error).replace(str(ready.model.directory), ready.name)
            raise StatusError(400, line, "messages") from None
        room = room_for(ids, ready.model, "messages")
        most = _most(body) or room or _UNLIMITED
        limits = replace(limits, max_new_tokens=most if room is None else min(most, room))
        readers = [None if tools is None else tools.reader(body.stream) for _ in range(copies)]
        request = Request(ids, sampling, limits, copies, rule, body.top_logprobs or 0, context.owner)
        yield Prepared(ready, [request], bool(body.logprobs), [each for each in readers if each is not None])


def talk_of(ready: Ready) -> Talk:
    """Conversations with a model. StatusError 400 where it holds none."""
    if ready.model.usage.template is None:
        told = f"{ready.name} has no chat template, so it knows no turns; use /v1/completions, or a chat model"
        raise StatusError(400, told, "model")
    return ready.model.talk


def opens(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether an answer is begun. StatusError 400 where the last message is to go on as well."""
    if add_generation_prompt and continue_final_message:
        told = "continue_final_message and add_generation_prompt cannot both be; leave one of them out"
        raise StatusError(400, told, "continue_final_message")
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt


def _most(body: ChatBody) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise StatusError(400, "max_tokens and max_completion_tokens are the same; leave one of them out", "max_tokens")
    return body.max_tokens or body.max_completion_tokens


def _tools(body: ChatBody, talk: Talk) -> Toolbox | None:
    """The tools of a request; None without any. UserError for what cannot be called."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise StatusError(400, "tool_choice asks for a call and there are no tools; give tools", "tool_choice")
        return None
    parallel = body.parallel_tool_calls is not False
    return Toolbox(talk.codec, talk.template.text, body.tools, body.tool_choice or "auto", parallel)


def messages_of(given: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates read them. StatusError 400 for what none reads."""
    if not given:
        raise StatusError(400, "messages is empty; say something first", "messages")
    return told([_message(message, f"messages[{place}]") for place, message in enumerate(given)])


def _message(message: ChatMessage, param: str) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "".join(_text(part, f"{param}.content[{place}]") for place, part in enumerate(content))
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise StatusError(400, f"{param} has no content; give a text", param)
    role = "system" if message.role == "developer" else message.role
    told: dict[str, Any] = {"role": role, "content": content or ""}
    if message.name is not UNSET:
        told["name"] = message.name
    if message.tool_call_id is not UNSET:
        told["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        told["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    return told


_TEXTS_OF = {"image_url": "/v1/caption", "input_audio": "/v1/audio/transcriptions"}


def _text(part: dict[str, Any], param: str) -> str:
    """What a part of a message says. StatusError 400 for what is no text."""
    kind, text = part.get("type"), part.get("text")
    if isinstance(kind, str) and kind != "text":
        remedy = f"have {_TEXTS_OF[kind]} make a text of it" if kind in _TEXTS_OF else "give parts of type text"
        raise StatusError(400, f"{param} is of type {kind[:40]!r}, and chats read texts alone; {remedy}", param)
    strange = next((field for field in part if field not in ("type", "text")), None)
    if strange is not None:
        told = f"{param} has the field {strange[:40]!r}, which a part of type text has not; leave it out"
        raise StatusError(400, told, f"{param}.{strange[:40]}", "unknown_field")
    if kind != "text" or not isinstance(text, str):
        raise StatusError(400, f'{param} is no text; give {{"type": "text", "text": "..."}}', param)
    return text


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        answered,
        "the next answer in a conversation",
        ChatBody,
        ChatAnswer,
        ChatAnswerPart,
    ),
)
