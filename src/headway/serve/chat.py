"""/v1/chat/completions: answers in a conversation, with the model's own chat template."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET

from headway.codecs.chat_template import ChatTemplate
from headway.codecs.thinking_format import CHANNEL, MESSAGE, START, ThinkingFormat
from headway.domains.chat.predictors import Conversation
from headway.errors import UserError
from headway.generate.scheduler import Request
from headway.generate.score import TokenScore
from headway.generate.sequences import ANSWER, BEFORE
from headway.generate.thinking import answer_reader, check_budget, thinking_off, thinking_rule
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
    FinishReason,
    TokenLogprob,
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
    token_usage,
    truncate_prompt,
)
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, Events, ReadyModel
from headway.serve.tool_calls import ToolCall
from headway.serve.tools import Toolbox, arranged_messages, template_messages

_RESERVED_TOKENS = 256  # tokens reserved for the answer with truncate_prompt_tokens -1 and no max_tokens
_DEFAULT_MAX_TOKENS = 4096  # tokens per answer if neither the request nor the context limits it


@dataclass
class _Answer:
    """An answer so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[CalledTool] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scores: Sequence[TokenScore] = ()
    reason: FinishReason = "stop"

    def choice(self, index: int, with_logprobs: bool, with_ids: bool) -> ChatChoice:
        content = None if self.calls and not self.content else self.content
        message = AnswerMessage(content, self.calls or UNSET, reasoning_content=self.reasoning or UNSET)
        tokens = ChatLogprobs(self.tokens) if with_logprobs else None
        return ChatChoice(index, message, tokens, self.reason, self.ids if with_ids else None)


async def create_chat_completion(body: ChatBody, context: Context) -> ChatAnswer | Events:
    """The answers to a conversation, complete or streamed."""
    check_body(body)
    if body.stream:
        return Events(_stream_events(body, context))
    answers: defaultdict[int, _Answer] = defaultdict(_Answer)
    async with prepare(body, context) as job, aclosing(stream_events(job, context)) as stream:
        async for event in stream:
            answer, token = answers[event.sequence], job.token_logprob(event)
            answer.content += event.text
            answer.reasoning += event.reasoning if body.include_reasoning else ""
            calls = [call for call in event.calls if isinstance(call, ToolCall)]
            answer.calls += [CalledTool(id, CalledFunction(*function)) for id, *function in calls]
            answer.tokens += [] if token is None else [token]
            answer.ids += [] if event.id is None else [event.id]
            answer.scores = answer.scores or event.scores
            answer.reason = event.reason or answer.reason
        choices = [
            answer.choice(index, job.with_logprobs, body.return_token_ids) for index, answer in sorted(answers.items())
        ]
        name, fingerprint = job.ready.name, job.ready.fingerprint
        chat_answer = ChatAnswer(
            f"chatcmpl-{context.id}", int(time.time()), name, fingerprint, choices, token_usage(context)
        )
        if body.prompt_logprobs is not None:
            format_scores = TokenFormatter.of(job.ready.model).prompt_logprobs
            chat_answer.prompt_logprobs = await asyncio.to_thread(
                format_scores, answers[0].scores, body.prompt_logprobs
            )
        if body.return_token_ids:
            chat_answer.prompt_token_ids = list(job.requests[0].prompt)
        return chat_answer


async def _stream_events(body: ChatBody, context: Context) -> AsyncGenerator[ChatAnswerPart, None]:
    options = body.stream_options
    include_usage = options is not None and options.include_usage
    every_event = include_usage and options is not None and options.continuous_usage_stats
    created, started, num_calls = int(time.time()), set[int](), Counter[int]()
    async with prepare(body, context) as job, aclosing(stream_events(job, context)) as stream:
        name, fingerprint, usage = job.ready.name, job.ready.fingerprint, None if include_usage else UNSET
        # One struct for all parts: each is written out before the next is made.
        part = ChatAnswerPart(f"chatcmpl-{context.id}", created, name, fingerprint, [], usage)
        async for event in stream:
            index, id, token = event.sequence, event.id, job.token_logprob(event)
            if index not in started:
                started.add(index)
                part.usage = token_usage(context, pending=id is not None) if every_event else usage
                part.choices = [ChatChoicePart(index, AnswerPart("assistant", ""))]
                part.prompt_token_ids = list(job.requests[0].prompt) if body.return_token_ids else UNSET
                yield part
                part.prompt_token_ids = UNSET
            part.usage = token_usage(context) if every_event else usage
            logprobs = None if token is None else ChatLogprobs([token])
            ids = [id] if id is not None and body.return_token_ids else UNSET
            has_token = token is not None or ids is not UNSET
            reasoning = event.reasoning if body.include_reasoning else ""
            deltas = [AnswerPart(reasoning_content=reasoning)] if reasoning else []
            if event.text or (has_token and not event.calls and not deltas):
                deltas.append(AnswerPart(content=event.text))
            for call in event.calls:
                num_calls[index] += isinstance(call, ToolCall)
                if isinstance(call, ToolCall):
                    function = CalledFunctionPart(call.arguments, call.name)
                    call_part = CalledToolPart(num_calls[index] - 1, function, call.id, "function")
                else:
                    call_part = CalledToolPart(num_calls[index] - 1, CalledFunctionPart(call.text))
                deltas.append(AnswerPart(tool_calls=[call_part]))
            for delta in deltas:
                part.choices = [ChatChoicePart(index, delta, logprobs, None, ids)]
                logprobs, ids = None, UNSET  # sent only once
                yield part
            if event.reason is not None:
                part.choices = [ChatChoicePart(index, AnswerPart(), None, event.reason)]
                yield part
        if include_usage:
            part.choices, part.usage = [], token_usage(context)
            yield part


@asynccontextmanager
async def prepare(body: ChatBody, context: Context) -> AsyncIterator[GenerationJob]:
    """The checked request. StatusError 400 if it does not fit the model; nothing is dropped to make it fit."""
    if body.top_logprobs and not body.logprobs:
        raise StatusError(400, "top_logprobs needs logprobs; set logprobs to true", "top_logprobs")
    messages = messages_of(body.messages)
    async with context.served.using(body.model) as ready:
        n = num_samples(body, 1, context)
        sampling = sampling_of(body, ready.model.module.config.vocab_size)
        conversation = conversation_of(ready)
        messages = arranged_messages(messages, conversation.template.text)
        limits = conversation.with_turn_end(limits_of(body, ready.model, context))
        rule = await rule_of(body, ready.model, limits.stop_ids)
        tools, budget = _tools(body, conversation), _budget(body, conversation, context)
        tools_rule = None if tools is None else await asyncio.to_thread(tools.rule, limits.stop_ids)
        if tools is not None and tools_rule is not None:
            if rule is not None and not tools.required:  # if tools are required, there is no text to format
                raise StatusError(400, "a tool is strict and response_format is set; leave one of them out", "tools")
            rule = tools_rule
        context.headers |= {} if rule is None else rule.headers
        template = conversation.template.with_values(_template_values(body, budget, conversation.template.text))
        prompt_end = starts_answer(body.add_generation_prompt, body.continue_final_message), body.continue_final_message
        template_tools = tools and tools.template_tools
        try:
            ids = await asyncio.to_thread(template.prompt, conversation.codec, messages, template_tools, *prompt_end)
            state = await asyncio.to_thread(
                _answer_state, conversation, template, messages, template_tools, *prompt_end
            )
        except UserError as error:  # clients need not know the model's path
            line = str(error).replace(str(ready.model.directory), ready.name)
            raise StatusError(400, line, "messages") from None
        ids = truncate_prompt(ids, body, ready.model, _max_tokens(body) or _RESERVED_TOKENS)
        remaining = remaining_context(ids, ready.model, "messages")
        max_tokens = _max_tokens(body) or remaining or _DEFAULT_MAX_TOKENS
        limits = replace(limits, max_new_tokens=max_tokens if remaining is None else min(max_tokens, remaining))
        make_rule, thinking, vocab_size = rule, conversation.thinking, ready.model.module.config.vocab_size
        if thinking is not None:
            texts, header = () if rule is None else rule.token_texts, _answer_header(thinking, rule is tools_rule)
            stop_ids = limits.all_stop_ids(conversation.codec)
            make_rule = thinking_rule(thinking, state, rule, budget, stop_ids, vocab_size, texts, header)
            forced = thinking.ids(f"{thinking.closing}{header or thinking.separator}") if make_rule is not rule else ()
            if body.allowed_token_ids is not None and (missing := {*forced} - {*body.allowed_token_ids}):
                message = f"allowed_token_ids lacks {min(missing)}, which ends the thinking; add it, or leave them out"
                raise StatusError(400, message, "allowed_token_ids")
        restricted = restricted_rule(make_rule, body, ready.model, limits)
        readers = [None if tools is None else tools.reader(body.stream) for _ in range(n)]
        reader = None if thinking is None else partial(answer_reader, thinking, state)
        request = Request(
            ids, sampling, limits, n, restricted, body.top_logprobs or 0, context.owner, prompt_top(body), reader=reader
        )
        call_readers = [reader for reader in readers if reader is not None]
        yield GenerationJob(ready, [request], bool(body.logprobs), call_readers, body.return_tokens_as_token_ids)


def _template_values(body: ChatBody, budget: int | None, template: str) -> dict[str, bool | int | float | str]:
    """Additional variables of the chat template. StatusError 400 for a reasoning effort that it does not use."""
    values, effort = {**thinking_off(budget, template), **(body.chat_template_kwargs or {})}, body.reasoning_effort
    if effort is not None and "reasoning_effort" in template:
        return {"reasoning_effort": effort, **values}
    if effort not in (None, "none"):
        message = f"reasoning_effort is {effort[:40]!r}, which the chat template does not use; leave it out"
        raise StatusError(400, message, "reasoning_effort", "unsupported")
    return values


def _budget(body: ChatBody, conversation: Conversation, context: Context) -> int | None:
    """The maximum number of tokens of thinking; None for no limit. UserError for one that does not fit the model."""
    budget = 0 if body.reasoning_effort == "none" else body.thinking_token_budget
    if body.reasoning_effort == "none" and body.thinking_token_budget not in (None, 0):
        message = "reasoning_effort is 'none' and thinking_token_budget is not 0; leave one of them out"
        raise StatusError(400, message, "thinking_token_budget")
    if budget is None and conversation.thinking is not None:
        budget = context.settings.thinking_token_budget
    return check_budget(budget, conversation.thinking)


def _answer_state(
    conversation: Conversation,
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Any] | None,
    starts: bool,
    continues: bool,
) -> str:
    """Whether the prompt ends before the thinking of the answer, within it or after it."""
    thinking = conversation.thinking
    if thinking is not None and continues:
        state = BEFORE if thinking.channels else thinking.state_after(str(messages[-1]["content"]))
        return ANSWER if state == BEFORE else state
    return conversation.answer_state(template, messages, tools) if starts or thinking is None else BEFORE


def _answer_header(thinking: ThinkingFormat, is_call: bool) -> str:
    """How an answer that follows a rule starts after the thinking."""
    role = f"{START}assistant"
    return "" if not thinking.channels else role if is_call else f"{role}{CHANNEL}final{MESSAGE}"


def conversation_of(ready: ReadyModel) -> Conversation:
    """A model's conversation format. StatusError 400 if it has none."""
    if ready.model.usage.template is None:
        message = f"{ready.name} has no chat template; use /v1/completions, or a chat model"
        raise StatusError(400, message, "model")
    return ready.model.talk


def starts_answer(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether to start an answer. StatusError 400 if the request also continues the last message."""
    if add_generation_prompt and continue_final_message:
        message = "continue_final_message and add_generation_prompt cannot both be set; leave one of them out"
        raise StatusError(400, message, "continue_final_message")
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt


def _max_tokens(body: ChatBody) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise StatusError(400, "max_tokens and max_completion_tokens are the same; leave one of them out", "max_tokens")
    return body.max_tokens or body.max_completion_tokens


def _tools(body: ChatBody, conversation: Conversation) -> Toolbox | None:
    """The tools of a request; None without any. UserError for tools that cannot be called."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise StatusError(400, "tool_choice requires a call, but there are no tools; pass tools", "tool_choice")
        return None
    parallel, choice = body.parallel_tool_calls is not False, "auto" if body.tool_choice is None else body.tool_choice
    return Toolbox(conversation.codec, conversation.template.text, body.tools, choice, parallel)


def messages_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. StatusError 400 for other content."""
    if not messages:
        raise StatusError(400, "messages is empty; send at least one", "messages")
    converted = []
    for number, message in enumerate(messages):
        param, content = f"messages[{number}]", message.content
        if isinstance(content, list):
            content = "".join(_text(part, f"{param}.content[{index}]") for index, part in enumerate(content))
        if content is None and not (message.role == "assistant" and message.tool_calls):
            raise StatusError(400, f"{param} has no content; send a string", param)
        role = "system" if message.role == "developer" else message.role
        template_message: dict[str, Any] = {"role": role, "content": content or ""}
        if message.name is not UNSET:
            template_message["name"] = message.name
        if message.tool_call_id is not UNSET:
            template_message["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            template_message["tool_calls"] = msgspec.to_builtins(message.tool_calls)
        if reasoning := message.reasoning_content or message.reasoning:
            template_message["reasoning_content"] = reasoning
        converted.append(template_message)
    return template_messages(converted)


_CONVERTERS = {"image_url": "/v1/caption", "input_audio": "/v1/audio/transcriptions"}


def _text(part: dict[str, Any], param: str) -> str:
    """The text of a message part. StatusError 400 for other parts."""
    kind, text = part.get("type"), part.get("text")
    if isinstance(kind, str) and kind != "text":
        remedy = f"convert it with {_CONVERTERS[kind]}" if kind in _CONVERTERS else "send parts of type text"
        raise StatusError(400, f"{param} is of type {kind[:40]!r}, but chats accept only text; {remedy}", param)
    unknown_field = next(
        (field for field, value in part.items() if field not in ("type", "text") and value is not None), None
    )
    if unknown_field is not None:
        error_text = f"{param} has the field {unknown_field[:40]!r}, which a text part does not have; leave it out"
        raise StatusError(400, error_text, f"{param}.{unknown_field[:40]}", "unknown_field")
    if kind != "text" or not isinstance(text, str):
        raise StatusError(400, f'{param} is not a text part; send {{"type": "text", "text": "..."}}', param)
    return text


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        "the next answer in a conversation",
        ChatBody,
        ChatAnswer,
        ChatAnswerPart,
    ),
)
