"""/v1/chat/completions: answers in a conversation, with the model's own chat template."""

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
from headway.generate.score import TokenScore
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
    truncated,
    used,
)
from headway.serve.tools import Toolbox, told

_TRUNCATED = 256  # tokens reserved for the answer with truncate_prompt_tokens -1 and no max_tokens
_UNLIMITED = 4096  # tokens of an answer if neither the request nor the context limits it


@dataclass
class _Answer:
    """An answer so far."""

    content: str = ""
    calls: list[CalledTool] = field(default_factory=list)
    tokens: list[ToldToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scores: Sequence[TokenScore] = ()
    reason: Finish = "stop"

    def choice(self, place: int, told: bool, with_ids: bool) -> ChatChoice:
        content = None if self.calls and not self.content else self.content
        message, tokens = AnswerMessage(content, self.calls or UNSET), ChatLogprobs(self.tokens) if told else None
        return ChatChoice(place, message, tokens, self.reason, self.ids if with_ids else None)


async def answered(body: ChatBody, context: Context) -> ChatAnswer | Events:
    """The answers to a conversation, complete or streamed."""
    check_body(body)
    if body.stream:
        return Events(_parts(body, context))
    answers: defaultdict[int, _Answer] = defaultdict(_Answer)
    async with prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        async for passage in found:
            answer = answers[passage.place]
            answer.content += passage.text
            calls = [call for call in passage.calls if isinstance(call, ToolCall)]
            answer.calls += [CalledTool(id, CalledFunction(*function)) for id, *function in calls]
            answer.tokens += [] if passage.token is None else [passage.token]
            answer.ids += [] if passage.id is None else [passage.id]
            answer.scores = answer.scores or passage.scores
            answer.reason = passage.reason or answer.reason
        choices = [answer.choice(place, asked.told, body.return_token_ids) for place, answer in sorted(answers.items())]
        name, mark = asked.ready.name, asked.ready.fingerprint
        whole = ChatAnswer(f"chatcmpl-{context.id}", int(time.time()), name, mark, choices, used(context))
        if body.prompt_logprobs is not None:
            spell = Spelling.of(asked.ready.model).scored
            whole.prompt_logprobs = await asyncio.to_thread(spell, answers[0].scores, body.prompt_logprobs)
        if body.return_token_ids:
            whole.prompt_token_ids = list(asked.requests[0].prompt)
        return whole


async def _parts(body: ChatBody, context: Context) -> AsyncGenerator[ChatAnswerPart, None]:
    options = body.stream_options
    counted = options is not None and options.include_usage
    always = counted and options is not None and options.continuous_usage_stats
    created, begun, called = int(time.time()), set[int](), Counter[int]()
    async with prepared(body, context) as asked, aclosing(passages(asked, context)) as found:
        name, mark, usage = asked.ready.name, asked.ready.fingerprint, None if counted else UNSET
        # One struct for all events: each is written out before the next is made.
        event = ChatAnswerPart(f"chatcmpl-{context.id}", created, name, mark, [], usage)
        async for place, text, calls, token, reason, id, _ in found:
            if place not in begun:
                begun.add(place)
                event.usage = used(context, pending=id is not None) if always else usage
                event.choices = [ChatChoicePart(place, AnswerPart("assistant", ""))]
                event.prompt_token_ids = list(asked.requests[0].prompt) if body.return_token_ids else UNSET
                yield event
                event.prompt_token_ids = UNSET
            event.usage = used(context) if always else usage
            told = None if token is None else ChatLogprobs([token])
            ids = [id] if id is not None and body.return_token_ids else UNSET
            silent = token is not None or ids is not UNSET
            deltas = [AnswerPart(content=text)] if text or (silent and not calls) else []
            for call in calls:
                called[place] += isinstance(call, ToolCall)
                deltas.append(AnswerPart(tool_calls=[_call_part(call, called[place] - 1)]))
            for delta in deltas:
                event.choices = [ChatChoicePart(place, delta, told, None, ids)]
                told, ids = None, UNSET  # once
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
async def prepared(body: ChatBody, context: Context) -> AsyncIterator[Prepared]:
    """The checked request. StatusError 400 if it does not fit the model; nothing is dropped to make it fit."""
    if body.top_logprobs and not body.logprobs:
        raise StatusError(400, "top_logprobs needs logprobs; set logprobs to true", "top_logprobs")
    messages = messages_of(body.messages)
    async with context.served.using(body.model) as ready:
        copies = copies_of(body, 1, context)
        sampling = sampling_of(body, ready.model.module.config.symbols)
        talk = talk_of(ready)
        limits = talk.turn(limits_of(body, ready.model, context))
        rule = await rule_of(body, ready.model, limits.stop_ids)
        tools = _tools(body, talk)
        if tools is not None and (calling := await asyncio.to_thread(tools.rule, limits.stop_ids)) is not None:
            if rule is not None and not tools.required:  # if tools are required, there is no text to format
                raise StatusError(400, "a tool is strict and response_format is set; leave one of them out", "tools")
            rule = calling
        context.headers |= {} if rule is None else rule.headers
        held = narrowed_rule(rule, body, ready.model, limits)
        template = talk.template.given(_template_values(body, talk.template.text))
        end = opens(body.add_generation_prompt, body.continue_final_message), body.continue_final_message
        try:
            ids = await asyncio.to_thread(template.prompt, talk.codec, messages, tools and tools.told, *end)
        except UserError as error:  # clients need not know the model's path
            line = str(error).replace(str(ready.model.directory), ready.name)
            raise StatusError(400, line, "messages") from None
        ids = truncated(ids, body, ready.model, _most(body) or _TRUNCATED)
        room = room_for(ids, ready.model, "messages")
        most = _most(body) or room or _UNLIMITED
        limits = replace(limits, max_new_tokens=most if room is None else min(most, room))
        readers = [None if tools is None else tools.reader(body.stream) for _ in range(copies)]
        request = Request(ids, sampling, limits, copies, held, body.top_logprobs or 0, context.owner, prompt_top(body))
        own = [each for each in readers if each is not None]
        yield Prepared(ready, [request], bool(body.logprobs), own, body.return_tokens_as_token_ids)


def _template_values(body: ChatBody, template: str) -> dict[str, bool | int | float | str]:
    """Additional variables of the chat template. StatusError 400 for a reasoning effort that it does not use."""
    values, effort = dict(body.chat_template_kwargs or {}), body.reasoning_effort
    if effort is None:
        return values
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort, **values}
    if effort != "none":
        told = f"reasoning_effort is {effort[:40]!r}, which the chat template does not use; leave it out"
        raise StatusError(400, told, "reasoning_effort", "unsupported")
    return {"enable_thinking": False, **values} if "enable_thinking" in template else values


def talk_of(ready: Ready) -> Talk:
    """The conversation format of a model. StatusError 400 if it has none."""
    if ready.model.usage.template is None:
        told = f"{ready.name} has no chat template; use /v1/completions, or a chat model"
        raise StatusError(400, told, "model")
    return ready.model.talk


def opens(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether to start an answer. StatusError 400 if the last message is to be continued as well."""
    if add_generation_prompt and continue_final_message:
        told = "continue_final_message and add_generation_prompt cannot both be set; leave one of them out"
        raise StatusError(400, told, "continue_final_message")
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt


def _most(body: ChatBody) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise StatusError(400, "max_tokens and max_completion_tokens are the same; leave one of them out", "max_tokens")
    return body.max_tokens or body.max_completion_tokens


def _tools(body: ChatBody, talk: Talk) -> Toolbox | None:
    """The tools of a request; None without any. UserError for tools that cannot be called."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise StatusError(400, "tool_choice requires a call, but there are no tools; pass tools", "tool_choice")
        return None
    parallel, choice = body.parallel_tool_calls is not False, "auto" if body.tool_choice is None else body.tool_choice
    return Toolbox(talk.codec, talk.template.text, body.tools, choice, parallel)


def messages_of(given: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. StatusError 400 for other content."""
    if not given:
        raise StatusError(400, "messages is empty; send at least one", "messages")
    return told([_message(message, f"messages[{place}]") for place, message in enumerate(given)])


def _message(message: ChatMessage, param: str) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "".join(_text(part, f"{param}.content[{place}]") for place, part in enumerate(content))
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise StatusError(400, f"{param} has no content; send a string", param)
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
    """The text of a message part. StatusError 400 for other parts."""
    kind, text = part.get("type"), part.get("text")
    if isinstance(kind, str) and kind != "text":
        remedy = f"convert it with {_TEXTS_OF[kind]}" if kind in _TEXTS_OF else "send parts of type text"
        raise StatusError(400, f"{param} is of type {kind[:40]!r}, but chats accept only text; {remedy}", param)
    strange = next(
        (field for field, value in part.items() if field not in ("type", "text") and value is not None), None
    )
    if strange is not None:
        told = f"{param} has the field {strange[:40]!r}, which a text part does not have; leave it out"
        raise StatusError(400, told, f"{param}.{strange[:40]}", "unknown_field")
    if kind != "text" or not isinstance(text, str):
        raise StatusError(400, f'{param} is not a text part; send {{"type": "text", "text": "..."}}', param)
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
